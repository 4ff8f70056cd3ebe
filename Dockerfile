# shardcast in a container:
#     docker build -t shardcast .
#     docker run --security-opt seccomp=tuning/seccomp.json --ulimit memlock=-1 -p 4222:4222 shardcast
# seccomp: the engines' own profile forbids io_uring (Docker since 25, containerd since 2.0).
# memlock: each shard locks 560 KiB; without it 8 MiB are enough for 14 shards.
# Further flags of the broker go behind the image's name.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# The commit for `-v` and INFO: .git is not in the context.
ARG SHARDCAST_GIT_COMMIT
# The file is for monitoring, the directory for `jetstream`; the image has nothing to make them with.
RUN cargo build --profile dist --locked --bin shardcast \
    && mkdir -p /image/etc/nats /image/data/jetstream \
    && printf 'jetstream { store_dir: "/data/jetstream" }\nhttp_port: 8222\n' >/image/etc/nats/nats.conf \
    && install -D target/dist/shardcast /image/usr/local/bin/shardcast \
    && ln -s shardcast /image/usr/local/bin/nats-server

# The C library and nothing else: no shell, no package manager; `nonroot` is user 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image /
COPY --from=build --chown=nonroot:nonroot /image/data /data
# Clients, cluster, gateways, leaf nodes, monitoring.
EXPOSE 4222 6222 7222 7422 8222
VOLUME /data
# Lame duck mode: clients are told and move elsewhere. Give it time (docker stop -t 150), or
# configure a shorter lame_duck_duration.
STOPSIGNAL SIGUSR2
# There is no HEALTHCHECK: the image has nothing to ask with. An orchestrator asks GET /healthz on
# the monitoring port itself.
ENTRYPOINT ["shardcast"]
CMD ["--config", "/etc/nats/nats.conf", "--shards", "auto"]
