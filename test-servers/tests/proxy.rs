//! Each mode of the proxy does what it says, seen by a client of a real server.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use test_servers::{Direction, Lease, Pool, Protocol, Proxy, Redis, Server, Then};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

static SERVERS: Pool<Server> = Pool::new(|| Box::pin(Server::start(Redis::v8()))).reset(|server| {
    Box::pin(async {
        // Also forgets clients whose ends have not come through.
        server.exec(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await?;
        server.exec(&["FLUSHALL"]).await.map(drop)
    })
});

/// What is not answered within this time is not answered.
const SILENCE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

struct Client(TcpStream);

impl Client {
    async fn connect(proxy: &Proxy) -> Self {
        Self(TcpStream::connect(proxy.addr()).await.unwrap())
    }

    async fn send(&mut self, commands: &str) {
        self.0.write_all(commands.as_bytes()).await.unwrap();
    }

    async fn receive(&mut self, wanted: &str) {
        let mut answer = vec![0; wanted.len()];
        timeout(PATIENCE, self.0.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), wanted);
    }

    async fn asks(&mut self, command: &str, answer: &str) {
        self.send(command).await;
        self.receive(answer).await;
    }

    async fn hears_nothing(&mut self) {
        let mut answer = [0];
        assert!(timeout(SILENCE, self.0.read(&mut answer)).await.is_err());
    }

    async fn is_reset(&mut self) {
        let end = timeout(PATIENCE, self.0.read(&mut [0])).await.unwrap();
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

async fn set_up() -> (Lease<Server>, Proxy) {
    let server = SERVERS.lease().await.unwrap();
    let proxy = Proxy::speaking(Protocol::Redis, server.addr()).await.unwrap();
    (server, proxy)
}

#[tokio::test]
async fn it_passes_and_counts() {
    let (_server, proxy) = set_up().await;
    let mut client = Client::connect(&proxy).await;
    client.asks("PING\r\n", "+PONG\r\n").await;
    client
        .asks("*3\r\n$3\r\nset\r\n$1\r\na\r\n$1\r\n1\r\n*2\r\n$4\r\nINCR\r\n$1\r\na\r\n", "+OK\r\n:2\r\n")
        .await;
    let counts = proxy.counts();
    assert_eq!((counts.connections, counts.round_trips, counts.all_requests()), (1, 2, 3));
    assert_eq!((counts.request("SET"), counts.request("INCR"), counts.request("GET")), (1, 1, 0));
    assert_eq!((counts.bytes_to_server, counts.bytes_to_client), (54, 16));
    proxy.reset_counts();
    client.asks("PING\r\n", "+PONG\r\n").await;
    assert_eq!((proxy.counts().connections, proxy.counts().round_trips), (0, 1));
}

#[tokio::test]
async fn a_long_batch_is_one_round_trip_when_replies_are_delayed() {
    let (_server, proxy) = set_up().await;
    proxy.delay(Direction::ToClient, Duration::from_millis(50));
    let mut client = Client::connect(&proxy).await;
    client.asks(&"PING\r\n".repeat(20_000), &"+PONG\r\n".repeat(20_000)).await;
    let counts = proxy.counts();
    assert_eq!((counts.round_trips, counts.request("PING")), (1, 20_000));
}

#[tokio::test]
async fn cut_resets_and_refuses_and_pass_serves_again() {
    let (_server, proxy) = set_up().await;
    let mut client = Client::connect(&proxy).await;
    client.asks("PING\r\n", "+PONG\r\n").await;
    proxy.cut().await.unwrap();
    client.is_reset().await;
    let refused = TcpStream::connect(proxy.addr()).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    proxy.pass().await.unwrap();
    Client::connect(&proxy).await.asks("PING\r\n", "+PONG\r\n").await;
}

#[tokio::test]
async fn connections_can_be_reset_alone() {
    let (_server, proxy) = set_up().await;
    let mut client = Client::connect(&proxy).await;
    client.asks("PING\r\n", "+PONG\r\n").await;
    proxy.reset_connections().await.unwrap();
    client.is_reset().await;
    Client::connect(&proxy).await.asks("PING\r\n", "+PONG\r\n").await;
}

#[tokio::test]
async fn a_dropped_proxy_resets_its_connections() {
    let (_server, proxy) = set_up().await;
    let mut client = Client::connect(&proxy).await;
    client.asks("PING\r\n", "+PONG\r\n").await;
    drop(proxy);
    client.is_reset().await;
}

#[tokio::test]
async fn a_request_in_a_black_hole_is_executed_late() {
    let (server, proxy) = set_up().await;
    let mut client = Client::connect(&proxy).await;
    client.asks("PING\r\n", "+PONG\r\n").await;
    proxy.black_hole(Direction::ToServer);
    client.send("SET a 1\r\n").await;
    client.hears_nothing().await;
    assert_eq!(server.exec(&["EXISTS", "a"]).await.unwrap(), "0");
    // The client gives up; what it sent is on its way all the same.
    drop(client);
    proxy.pass().await.unwrap();
    let counts = proxy.counted(|counts| counts.request("SET") == 1).await.unwrap();
    assert_eq!(counts.connections, 1);
    let executed = async { while server.exec(&["EXISTS", "a"]).await.unwrap() != "1" {} };
    timeout(PATIENCE, executed).await.unwrap();
}

#[tokio::test]
async fn a_reply_in_a_black_hole_comes_late() {
    let (server, proxy) = set_up().await;
    let mut client = Client::connect(&proxy).await;
    proxy.black_hole(Direction::ToClient);
    client.send("SET a 1\r\n").await;
    client.hears_nothing().await;
    assert_eq!(server.exec(&["GET", "a"]).await.unwrap(), "1");
    proxy.pass().await.unwrap();
    client.receive("+OK\r\n").await;
}

#[tokio::test]
async fn a_new_connection_hangs_and_an_old_one_goes_on() {
    let (_server, proxy) = set_up().await;
    let mut old = Client::connect(&proxy).await;
    old.asks("PING\r\n", "+PONG\r\n").await;
    proxy.hang();
    let mut new = Client::connect(&proxy).await;
    new.send("PING\r\n").await;
    new.hears_nothing().await;
    old.asks("PING\r\n", "+PONG\r\n").await;
    proxy.pass().await.unwrap();
    new.receive("+PONG\r\n").await;
}

#[tokio::test]
async fn a_dropped_reply_is_that_of_an_executed_request() {
    let (server, proxy) = set_up().await;
    for (then, value) in [(Then::Silence, "1"), (Then::Cut, "2")] {
        let mut other = Client::connect(&proxy).await;
        let mut client = Client::connect(&proxy).await;
        other.asks("PING\r\n", "+PONG\r\n").await;
        proxy.reset_counts();
        proxy.drop_next_reply_to("INCR", then);
        client.asks("PING\r\n", "+PONG\r\n").await;
        client.send("INCR a\r\n").await;
        if then == Then::Cut {
            client.is_reset().await;
        } else {
            client.hears_nothing().await;
        }
        assert_eq!(proxy.counted(|counts| counts.replies_dropped == 1).await.unwrap().request("INCR"), 1);
        assert_eq!(server.exec(&["GET", "a"]).await.unwrap(), value);
        // It was one reply of one connection.
        other.asks("PING\r\n", "+PONG\r\n").await;
        Client::connect(&proxy).await.asks("PING\r\n", "+PONG\r\n").await;
    }
    proxy.drop_next_reply(Then::Cut);
    Client::connect(&proxy).await.is_reset_after("PING\r\n").await;
}

impl Client {
    async fn is_reset_after(&mut self, command: &str) {
        self.send(command).await;
        self.is_reset().await;
    }
}

#[tokio::test]
async fn a_delay_delays_each_direction_and_not_the_throughput() {
    let (_server, proxy) = set_up().await;
    let mut client = Client::connect(&proxy).await;
    for direction in [Direction::ToServer, Direction::ToClient, Direction::Both] {
        proxy.pass().await.unwrap();
        proxy.delay(direction, Duration::from_millis(100));
        let expected = Duration::from_millis(if direction == Direction::Both { 200 } else { 100 });
        let start = Instant::now();
        client.asks("PING\r\n", "+PONG\r\n").await;
        assert!(start.elapsed() >= expected, "{direction:?}: {:?}", start.elapsed());
    }
    let start = Instant::now();
    // Hundreds of chunks, each as late as the first.
    client.asks(&"PING\r\n".repeat(200_000), &"+PONG\r\n".repeat(200_000)).await;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_limit_limits() {
    let (_server, proxy) = set_up().await;
    let mut client = Client::connect(&proxy).await;
    proxy.limit(Direction::ToClient, 10_000);
    let start = Instant::now();
    client.asks(&"PING\r\n".repeat(1_000), &"+PONG\r\n".repeat(1_000)).await;
    // The last piece is received before its time has passed.
    assert!(start.elapsed() >= Duration::from_millis(600), "{:?}", start.elapsed());
}

#[tokio::test]
async fn new_connections_go_to_another_target() {
    let (_one, proxy) = set_up().await;
    let other = SERVERS.lease().await.unwrap();
    let mut old = Client::connect(&proxy).await;
    old.asks("SET a old\r\n", "+OK\r\n").await;
    other.exec(&["SET", "a", "new"]).await.unwrap();
    proxy.set_target(other.addr());
    Client::connect(&proxy).await.asks("GET a\r\n", "$3\r\nnew\r\n").await;
    old.asks("GET a\r\n", "$3\r\nold\r\n").await;
    other.mark_dirty();
    other.kill().await.unwrap();
    let end = async { TcpStream::connect(proxy.addr()).await?.read(&mut [0]).await };
    assert_eq!(end.await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn it_works_while_the_clock_of_a_test_is_paused() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (_server, proxy) = set_up().await;
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        client.write_all(b"PING\r\n").await.unwrap();
        let mut answer = [0; 7];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"+PONG\r\n");
        proxy.cut().await.unwrap();
        client.read(&mut answer).await.unwrap_err();
    });
}

#[tokio::test]
async fn abandoned_clients_are_reset_and_the_server_hears_nothing() {
    let (server, proxy) = set_up().await;
    let mut client = Client::connect(&proxy).await;
    client.asks("PING\r\n", "+PONG\r\n").await;
    let connected = async || {
        let clients = server.exec(&["CLIENT", "LIST", "TYPE", "normal"]).await.unwrap();
        clients.lines().filter(|line| !line.contains("cmd=client")).count()
    };
    assert_eq!(connected().await, 1);
    proxy.abandon().await.unwrap();
    client.is_reset().await;
    TcpStream::connect(proxy.addr()).await.unwrap_err();
    assert_eq!(connected().await, 1, "the server was told");
    // When all is normal again it is.
    proxy.pass().await.unwrap();
    let told = async { while connected().await > 0 {} };
    timeout(PATIENCE, told).await.unwrap();
    Client::connect(&proxy).await.asks("PING\r\n", "+PONG\r\n").await;
}

/// A process that is being started has a copy of every open file for a moment.
#[tokio::test]
async fn processes_that_start_meanwhile_keep_no_port_open() {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let starting: Vec<_> = (0..4)
        .map(|_| {
            let end = end.clone();
            std::thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    assert!(std::process::Command::new("true").status().unwrap().success());
                }
            })
        })
        .collect();
    for _ in 0..300 {
        let proxy = Proxy::start(target.local_addr().unwrap()).await.unwrap();
        TcpStream::connect(proxy.addr()).await.unwrap();
        proxy.cut().await.unwrap();
        let refused = TcpStream::connect(proxy.addr()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        proxy.pass().await.unwrap();
    }
    end.store(true, Ordering::Relaxed);
    for thread in starting {
        thread.join().unwrap();
    }
}
