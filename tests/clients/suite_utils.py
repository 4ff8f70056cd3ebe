"""The servers that nats-py's own tests want, in place of the helper that its package leaves out.

`tests/clients/suite` puts this beside those tests. The executable is the one in SERVER, called
nats-server by a link first on the path; ports are the ones that the tests name, so all of it runs
in a network namespace of its own.
"""

import asyncio
import functools
import os
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request
from dataclasses import dataclass, field


@dataclass
class Server:
    port: int
    http_port: int
    args: list = field(default_factory=list)
    config: str = ""
    process: subprocess.Popen = None

    def start(self):
        command = ["nats-server", "-a", "127.0.0.1", "-p", str(self.port)]
        command += ["-m", str(self.http_port), *self.args]
        if self.config:
            self.file = tempfile.NamedTemporaryFile("w", suffix=".conf")
            self.file.write(self.config)
            self.file.flush()
            command += ["-c", self.file.name]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for _ in range(400):
            try:
                url = f"http://127.0.0.1:{self.http_port}/varz"
                if urllib.request.urlopen(url, timeout=1).status == 200:
                    return
            except OSError:
                time.sleep(0.025)
        raise RuntimeError(f"{command} does not answer")

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Servers(unittest.TestCase):
    def servers(self):
        return []

    first_only = False

    def setUp(self):
        self.server_pool = self.servers()
        for server in self.server_pool[: 1 if self.first_only else None]:
            server.start()

    def tearDown(self):
        for server in self.server_pool:
            server.stop()


class SingleServerTestCase(Servers):
    def servers(self):
        return [Server(4222, 8222)]


class MultiServerAuthTestCase(Servers):
    def servers(self):
        users = [("foo", "bar"), ("hoge", "fuga")]
        args = [["--user", user, "--pass", password] for user, password in users]
        return [Server(4223 + at, 8223 + at, args) for at, args in enumerate(args)]


class MultiServerAuthTokenTestCase(Servers):
    def servers(self):
        tokens = ["token", "token", "secret"]
        return [Server(4223 + at, 8223 + at, ["--auth", t]) for at, t in enumerate(tokens)]


class NoAuthUserServerTestCase(Servers):
    def servers(self):
        config = """
            no_auth_user: foo
            accounts { A { users: [
                {user: foo, password: foo}
                {user: bar, password: bar, permissions: {subscribe: {deny: "foo"}}}
            ] } }
        """
        return [Server(4555, 8555, config=config)]


class ClusteringTestCase(Servers):
    first_only = True
    login = []

    def servers(self):
        routes = ",".join(f"nats://127.0.0.1:{6223 + at}" for at in range(3))
        args = ["--cluster_name", "CLUSTER", "--routes", routes, *self.login]
        at_port = lambda at: ["--cluster_listen", f"nats://127.0.0.1:{6223 + at}"]
        return [Server(4223 + at, 8223 + at, at_port(at) + args) for at in range(3)]


class ClusteringDiscoveryAuthTestCase(ClusteringTestCase):
    first_only = False
    login = ["--user", "foo", "--pass", "bar"]


def absent(why):
    return unittest.skip(why)(type("Absent", (unittest.TestCase,), {}))


# Their certificates and keys are not in the package; tests/live/tls.rs and logins.rs have others.
TLSServerTestCase = absent("certificates")
TLSServerHandshakeFirstTestCase = absent("certificates")
MultiTLSServerAuthTestCase = absent("certificates")
SingleJetStreamServerTestCase = absent("JetStream")
NkeysServerTestCase = absent("keys")
TrustedServerTestCase = absent("keys")


def get_config_file(name):
    return os.path.join(os.path.dirname(__file__), name)


def async_test(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
        return asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run
