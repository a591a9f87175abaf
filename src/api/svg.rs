//! What drawings share: text that cannot break out.

/// Text for an element or a quoted attribute (XML 1.0, section 2.4).
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out() {
        let escaped = escape("a\"b'c<d>e&f");
        assert_eq!(escaped, "a&quot;b&#39;c&lt;d&gt;e&amp;f");
    }
}
