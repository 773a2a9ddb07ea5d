//! Locks on etcd servers on loopback. What both take is mostly the disk of the servers: each write is flushed.

use test_servers::{Etcd, Server};

use crate::servers;
use crate::setting::Setting;
use crate::table::section;

pub(crate) fn run() {
    Setting::MultiThread.run(async {
        section("ETCD, one member");
        let server = Server::start(Etcd::v3_5()).await.unwrap_or_else(|error| panic!("{error}"));
        servers::measure(&format!("etcd://{}", server.addr()), "").await;
        drop(server);
        section("ETCD, 3 members");
        let cluster = Etcd::v3_5().cluster(3).await.unwrap_or_else(|error| panic!("{error}"));
        let addresses: Vec<_> = cluster.addrs().iter().map(ToString::to_string).collect();
        servers::measure(&format!("etcd://{}", addresses.join(",")), "").await;
    });
}
