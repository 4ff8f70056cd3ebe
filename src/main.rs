fn main() {
    use shardcast::config::args::Command;
    let args = match shardcast::config::args::parse(std::env::args().skip(1)) { Ok(Command::Serve(a)) => a, other => { eprintln!("{other:?}"); std::process::exit(1) } };
    let mut options = match shardcast::config::load(&args) { Ok(o) => o, Err(e) => { eprintln!("shardcast: {e}"); std::process::exit(1) } };
    let l = std::net::TcpListener::bind((options.host.as_str(), options.port)).unwrap();
    options.port = l.local_addr().unwrap().port();
    let shards = match options.runtime.shards { shardcast::config::ShardCount::Auto => 2, shardcast::config::ShardCount::Exactly(n) => n };
    let id = shardcast::engine::Identity { id: "N".repeat(56), name: "x".into(), port: options.port };
    let options = std::sync::Arc::new(options);
    let s = shardcast::server::shards::Shards::start(&options, &id, l.into(), &vec![None; shards]).map_err(|e| { eprintln!("shardcast: {e}"); std::process::exit(1) }).unwrap_or_else(|_: ()| unreachable!());
    eprintln!("Listening for client connections on {}:{}\nServer is ready {}", options.host, options.port, s.tier());
    let _ = s.ended().recv();
}
