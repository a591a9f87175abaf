// The demo page: the widget draws the counter above; here are the three numbers and the commands.

import { LiveCount } from "./widget.js";

const at = (id) => document.getElementById(id);
const another = new URL(location).searchParams.get("as") === "another";
at("live").toggleAttribute("no-viewer", another);

new LiveCount({
  blogId: "demo",
  viewer: !another,
  onCount(count) {
    for (const name of ["viewers", "connections", "members"]) at(name).textContent = count[name];
  },
});

at("html").textContent = `<script type="module" src="${new URL("widget.js", location)}"></script>
<live-count blog-id="demo">connecting…</live-count>`;
at("curl").textContent = [
  `curl -N -X POST ${new URL("v1/join", location)}`,
  "-H 'Accept: text/event-stream'",
  "-H 'Content-Type: application/json'",
  `-d '{"blog_id":"demo"}'`,
].join(" \\\n  ");
at("copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText(at("curl").textContent);
    at("copy").textContent = "Copied";
  } catch {
    // Without https there is no clipboard for scripts: select it, so that one key copies it.
    getSelection().selectAllChildren(at("curl"));
    at("copy").textContent = "Selected: press Ctrl-C or ⌘C";
  }
  setTimeout(() => { at("copy").textContent = "Copy the command"; }, 3000);
};
