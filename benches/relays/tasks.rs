//! The relay as tasks: one reads, and each subscriber has one that writes.

use std::io::ErrorKind;
use std::rc::Rc;

use futures::{AsyncReadExt, AsyncWriteExt};
use glommio::{LocalExecutorBuilder, Placement};

use super::{CHUNK_BYTES, Shared, say};

/// glommio locks this much for its rings; with its default of 10 MiB not even 8 MiB suffice.
const GLOMMIO_MEMORY_BYTES: usize = 1024 * 1024;

pub(super) fn run_on_tokio_uring(subscribers: usize) {
    tokio_uring::start(async {
        let any = ([127, 0, 0, 1], 0).into();
        let listener = tokio_uring::net::TcpListener::bind(any).expect("a free port");
        say(listener.local_addr().expect("it has a port").port());
        let (publisher, _) = listener.accept().await.expect("the publisher comes");
        let shared = Shared::new(subscribers);
        for subscriber in 0..subscribers {
            let (socket, _) = listener.accept().await.expect("the subscribers come");
            socket.set_nodelay(true).expect("it is a TCP socket");
            let shared = Rc::clone(&shared);
            tokio_uring::spawn(async move {
                let mut buffer = Vec::new();
                loop {
                    buffer = Shared::next(&shared, subscriber, buffer).await;
                    let (result, back) = socket.write_all(buffer).await;
                    if result.is_err() {
                        return;
                    }
                    buffer = back;
                    buffer.clear();
                }
            });
        }
        let mut buffer = Vec::with_capacity(CHUNK_BYTES);
        loop {
            let (result, back) = publisher.read(buffer).await;
            buffer = back;
            match result {
                Ok(0) => return,
                Ok(bytes) => Shared::relay(&shared, &buffer[..bytes]).await,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("reading: {error}"),
            }
        }
    });
}

pub(super) fn run_on_glommio(subscribers: usize) {
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(GLOMMIO_MEMORY_BYTES)
        .make()
        .expect("glommio needs io_uring, and RLIMIT_MEMLOCK of 8 MiB");
    executor.run(async {
        let listener = glommio::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        say(listener.local_addr().expect("it has a port").port());
        let mut publisher = listener.accept().await.expect("the publisher comes");
        let shared = Shared::new(subscribers);
        for subscriber in 0..subscribers {
            let mut socket = listener.accept().await.expect("the subscribers come");
            socket.set_nodelay(true).expect("it is a TCP socket");
            let shared = Rc::clone(&shared);
            let writing = glommio::spawn_local(async move {
                let mut buffer = Vec::new();
                loop {
                    buffer = Shared::next(&shared, subscriber, buffer).await;
                    if socket.write_all(&buffer).await.is_err() {
                        return;
                    }
                    buffer.clear();
                }
            });
            writing.detach();
        }
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match publisher.read(&mut buffer).await {
                Ok(0) => return,
                Ok(bytes) => Shared::relay(&shared, &buffer[..bytes]).await,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("reading: {error}"),
            }
        }
    });
}
