"""`python -m chaos.fault_proxy_api`: fault proxies in a process of their own, ruled by HTTP as Toxiproxy's are.

    GET    /proxies                        all, by name
    GET    /proxies/{name}                 one; POST {"enabled": false} takes it down
    GET    /proxies/{name}/toxics          POST adds one
    GET    /proxies/{name}/toxics/{toxic}  POST replaces, DELETE removes it
    POST   /reset                          all up, no toxics

It listens on the loopback only: who may reach it may cut the gateway's connections.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import orjson
from aiohttp import web

from chaos import limits
from chaos.fault_proxy import Address, FaultProxy
from chaos.ports import HOST
from chaos.toxics import Toxic, ToxicError, read_toxic

_PROXIES: Final = web.AppKey("proxies", dict[str, FaultProxy])


def make_app(proxies: Mapping[str, FaultProxy]) -> web.Application:
    """Make the API of these proxies."""
    app = web.Application(client_max_size=limits.FAULT_PROXY_REQUEST_BYTES_MAX, middlewares=[_problems])
    app[_PROXIES] = dict(proxies)
    app.router.add_get("/proxies", _list)
    app.router.add_get("/proxies/{name}", _show)
    app.router.add_post("/proxies/{name}", _change)
    app.router.add_get("/proxies/{name}/toxics", _list_toxics)
    app.router.add_post("/proxies/{name}/toxics", _add_toxic)
    app.router.add_get("/proxies/{name}/toxics/{toxic}", _show_toxic)
    app.router.add_post("/proxies/{name}/toxics/{toxic}", _replace_toxic)
    app.router.add_delete("/proxies/{name}/toxics/{toxic}", _remove_toxic)
    app.router.add_post("/reset", _reset)
    return app


def _json(content: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(content), content_type="application/json", status=status)


@web.middleware
async def _problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ToxicError as error:
        return _json({"error": str(error), "status": 400}, 400)
    except web.HTTPException as error:
        return _json({"error": error.text or error.reason, "status": error.status}, error.status)
    except OSError as error:
        return _json({"error": f"it can't listen: {error}", "status": 409}, 409)


def _proxy(request: web.Request) -> FaultProxy:
    proxies = request.app[_PROXIES]
    name = request.match_info["name"]
    if name not in proxies:
        raise web.HTTPNotFound(text=f"there is no proxy {name!r}; there are {', '.join(proxies)}")
    return proxies[name]


def _toxic(request: web.Request) -> Toxic:
    name = request.match_info["toxic"]
    for toxic in _proxy(request).toxics:
        if toxic.full_name == name:
            return toxic
    raise web.HTTPNotFound(text=f"there is no toxic {name!r}")


def _fields(name: str, proxy: FaultProxy) -> dict[str, Any]:
    return {
        "name": name,
        "listen": "{}:{}".format(*proxy.address),
        "upstream": "{}:{}".format(*proxy.target),
        "enabled": proxy.enabled,
        "connections": proxy.open_connections,
        "toxics": [toxic.fields() for toxic in proxy.toxics],
    }


async def _list(request: web.Request) -> web.Response:
    return _json({name: _fields(name, proxy) for name, proxy in request.app[_PROXIES].items()})


async def _show(request: web.Request) -> web.Response:
    return _json(_fields(request.match_info["name"], _proxy(request)))


async def _change(request: web.Request) -> web.Response:
    proxy = _proxy(request)
    try:
        content = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise ToxicError(f"body: not JSON: {error}") from error
    match content:
        case {"enabled": bool(enabled), **more} if not more:
            await (proxy.enable() if enabled else proxy.disable())
        case _:
            raise ToxicError('body: should be {"enabled": true} or {"enabled": false}')
    return _json(_fields(request.match_info["name"], proxy))


async def _list_toxics(request: web.Request) -> web.Response:
    return _json([toxic.fields() for toxic in _proxy(request).toxics])


async def _add_toxic(request: web.Request) -> web.Response:
    proxy = _proxy(request)
    toxic = read_toxic(await request.read())
    if any(one.full_name == toxic.full_name for one in proxy.toxics):
        return _json({"error": f"there is a toxic {toxic.full_name!r} already", "status": 409}, 409)
    proxy.add(toxic)
    return _json(toxic.fields())


async def _show_toxic(request: web.Request) -> web.Response:
    return _json(_toxic(request).fields())


async def _replace_toxic(request: web.Request) -> web.Response:
    known = _toxic(request)
    toxic = read_toxic(await request.read())
    if toxic.full_name != known.full_name:
        raise ToxicError(f"name: it is {toxic.full_name!r} in the body and {known.full_name!r} in the path")
    _proxy(request).replace(toxic)
    return _json(toxic.fields())


async def _remove_toxic(request: web.Request) -> web.Response:
    _proxy(request).remove(_toxic(request).full_name)
    return web.Response(status=204)


async def _reset(request: web.Request) -> web.Response:
    for proxy in request.app[_PROXIES].values():
        proxy.clear()
        await proxy.enable()
    return web.Response(status=204)


def read_proxy(text: str) -> tuple[str, Address, Address]:
    """Read NAME=LISTEN_PORT=HOST:PORT, or a row of ports by its first: see `--help`. Raises ValueError."""
    name, listen, target = text.split("=")
    host, _, port = target.rpartition(":")
    if not name or not host:
        raise ValueError(text)
    addresses = (HOST, int(listen)), (host, int(port))
    if not all(0 < number <= 65_535 for _, number in addresses):
        raise ValueError(text)
    return name, *addresses


async def _run(named: list[tuple[str, Address, Address]], control_port: int, seed: int) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with AsyncExitStack() as stack:
        proxies = {}
        for name, listen, target in named:
            proxies[name] = await stack.enter_async_context(FaultProxy(listen, target, seed=seed))
        runner = web.AppRunner(make_app(proxies), access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, HOST, control_port).start()
        sys.stdout.write(f"fault proxies: {', '.join(proxies)}; seed {seed}; API at http://{HOST}:{control_port}\n")
        sys.stdout.flush()
        await ended.wait()


def main() -> None:
    """Run fault proxies until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run TCP proxies with Toxiproxy's toxics, ruled by HTTP.")
    parser.add_argument(
        "--proxy",
        dest="proxies",
        type=read_proxy,
        action="append",
        required=True,
        metavar="NAME=PORT=HOST:PORT",
        help="a name, the port to listen on, and the target; may be repeated",
    )
    parser.add_argument("--control-port", type=int, required=True, help="where its API listens, on the loopback")
    parser.add_argument("--seed", type=int, default=0, help="of all chance: jitter, slices, toxicity")
    arguments = parser.parse_args()
    try:
        asyncio.run(_run(arguments.proxies, arguments.control_port, arguments.seed))
    except OSError as error:
        sys.stderr.write(f"chaos.fault_proxy_api: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
