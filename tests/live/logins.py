"""Logs in with nats-py in every way it has. Arguments: the url, and a list of logins as JSON.

Prints a line for each: `in` and what came back of a message, or `out` and the error.
"""

import asyncio
import json
import ssl
import sys

import nats


async def log_in(url, given):
    options = {
        name: given[name]
        for name in ("user", "password", "token", "nkeys_seed", "user_credentials")
        if name in given
    }
    if "ca" in given:
        options["tls"] = ssl.create_default_context(cafile=given["ca"])
        options["tls_hostname"] = "localhost"
        if "cert" in given:
            options["tls"].load_cert_chain(given["cert"], given["key"])
    failure = []

    async def on_error(error):
        failure.append(error)

    try:
        client = await nats.connect(
            url, allow_reconnect=False, connect_timeout=30, error_cb=on_error, **options
        )
    except Exception as error:  # noqa: BLE001: whatever it is, it is what the test asks for
        return f"out {(failure or [error])[0]!r}"
    inbox = await client.subscribe("self")
    await client.publish("self", b"me")
    said = (await inbox.next_msg(timeout=30)).data.decode()
    await client.close()
    return f"in {said}"


async def main(url, logins):
    for line in await asyncio.gather(*(log_in(url, given) for given in logins)):
        print(line)


asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
