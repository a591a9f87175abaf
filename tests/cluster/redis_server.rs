//! A `redis-server` of a test's own.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::wire::PATIENCE;

/// What the README says that a user of the store must have the right to, word for word.
pub(crate) fn documented_rights() -> Vec<String> {
    const GIVEN: &str = "ACL SETUSER livecount on >PASSWORD ";
    let readme = include_str!("../../README.md");
    let rights = readme
        .lines()
        .find_map(|line| line.trim().strip_prefix(GIVEN));
    let rights = rights.expect("the README has it in one line");
    rights.split(' ').map(str::to_owned).collect()
}

/// A running server in a directory of its own, both gone when dropped.
#[derive(Debug)]
pub(crate) struct RedisServer {
    process: Option<Child>,
    port: u16,
    directory: PathBuf,
    arguments: Vec<String>,
}

impl RedisServer {
    /// Starts an empty server that saves nothing by itself.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// As [`RedisServer::start`], with further arguments.
    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let directory =
            std::env::temp_dir().join(format!("livecount-redis-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&directory).expect("the directory is new");
        let mut server = Self {
            process: None,
            port: 0,
            directory,
            arguments: arguments
                .iter()
                .map(|&argument| argument.to_owned())
                .collect(),
        };
        // Somebody else may take the port between its choice and its use.
        for _ in 0..5 {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
            server.port = free.local_addr().unwrap().port();
            drop(free);
            if server.resume().await {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    /// Starts the server again on its port and directory; false where it ended at once.
    pub(crate) async fn resume(&mut self) -> bool {
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--dir")
            .arg(&self.directory)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let process = self.process.insert(process);
        loop {
            if process.try_wait().unwrap().is_some() {
                return false;
            }
            if tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
                .await
                .is_ok()
            {
                return true;
            }
            // Nothing tells when a process begins to listen.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills the server, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Sends the process a signal by its name, `STOP` or `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let process = self.process.as_ref().expect("the server runs");
        let signalled = Command::new("kill")
            .args([&format!("-{name}"), &process.id().to_string()])
            .status();
        assert!(signalled.expect("kill is installed").success());
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A connection that reads and writes whatever a test wants.
    pub(crate) async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        redis::Client::open(self.url())
            .unwrap()
            .get_multiplexed_async_connection_with_config(&patient)
            .await
            .expect("the server answers")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
