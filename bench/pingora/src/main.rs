//! pingora-proxy LISTEN UPSTREAM: carries bytes with pingora's services and connectors.

use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::connectors::TransportConnector;
use pingora_core::protocols::Stream;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{Server, ShutdownWatch};
use pingora_core::services::listening::Service;
use pingora_core::upstreams::peer::BasicPeer;

struct Proxy {
    connector: TransportConnector,
    upstream: BasicPeer,
}

#[async_trait]
impl ServerApp for Proxy {
    async fn process_new(self: &Arc<Self>, mut client: Stream, _: &ShutdownWatch) -> Option<Stream> {
        let mut upstream = self.connector.new_stream(&self.upstream).await.ok()?;
        let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
        None
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(upstream)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: pingora-proxy LISTEN UPSTREAM");
        std::process::exit(2);
    };
    let conf = ServerConf { threads: 2, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let proxy = Proxy { connector: TransportConnector::new(None), upstream: BasicPeer::new(&upstream) };
    let mut service = Service::new("proxy".to_owned(), proxy);
    service.add_tcp(&listen);
    server.add_service(service);
    server.run_forever();
}
