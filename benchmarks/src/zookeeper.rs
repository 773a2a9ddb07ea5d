//! Locks on ZooKeeper servers on loopback. What both take is mostly the disk of the servers: each write is flushed.

use test_servers::{Server, ZooKeeper};

use crate::servers;
use crate::setting::Setting;
use crate::table::section;

pub(crate) fn run() {
    Setting::MultiThread.run(async {
        section("ZOOKEEPER, one server");
        let server = Server::start(ZooKeeper::v3_9()).await.unwrap_or_else(|error| panic!("{error}"));
        servers::measure(&format!("zk://{}", server.addr()), "").await;
        drop(server);
        section("ZOOKEEPER, 3 servers");
        let ensemble = ZooKeeper::v3_9().cluster(3).await.unwrap_or_else(|error| panic!("{error}"));
        let addresses: Vec<_> = ensemble.addrs().iter().map(ToString::to_string).collect();
        servers::measure(&format!("zk://{}", addresses.join(",")), "").await;
    });
}
