"""Finds the dask.distributed client to work with.

Knows what is given, what is active, and what no worker can reach. Must not
know what the work is.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, cast

from lobster_zarr.errors import InvalidArgumentError, NetworkError
from lobster_zarr.store import UriStore

if TYPE_CHECKING:
    from distributed import Client
    from zarr.abc.store import Store


CONNECT_SECONDS = 10

OUT_OF_REACH = (
    "client was passed, but workers cannot reach what is in the memory of this process; expected URIs or paths "
    "that they share. Write an AnnData to an .h5ad and pass its path, or leave out client."
)


def find_client(client: Client | Literal[False] | None) -> Client | None:
    """Return the client that was passed, or the active one, or None where the work is done here.

    Parameters
    ----------
    client
        False for none. None for the active one, if there is one; within a task
        of a cluster there is none, because a task that waits for tasks may wait for ever.

    Raises
    ------
    InvalidArgumentError
        It is not a client, or one of coroutines.
    """
    if client is False or (client is None and "distributed" not in sys.modules):
        return None
    import distributed

    if client is None:
        with suppress(ValueError):
            distributed.get_worker()
            return None
        with suppress(ValueError):
            found: Client = distributed.client.default_client()  # type: ignore[no-untyped-call]
            return found if found.status == "running" and not found.asynchronous else None
        return None
    if not isinstance(cast("object", client), distributed.Client) or client.asynchronous:
        msg = f"client is {client!r}; expected a distributed.Client that is not asynchronous, None or False."
        raise InvalidArgumentError(msg)
    return client


def client_for(client: Client | Literal[False] | None, store: Store) -> Client | None:
    """Return the client on whose workers to read a store, as `find_client` does, or None to read it here.

    Raises
    ------
    InvalidArgumentError
        A client was passed, and no other process can reach the store.
    """
    found = find_client(client)
    if found is None or not isinstance(store, UriStore) or store.address.is_shared:
        return found
    if client is None:
        return None
    raise InvalidArgumentError(OUT_OF_REACH)


def check_scheduler(address: str) -> None:
    """Refuse an address where no scheduler answers; a Client would do so later, and go on trying at its end.

    Raises
    ------
    NetworkError
        Nothing answers, or nothing could.
    """
    from distributed.comm import core
    from distributed.security import Security

    async def greet() -> None:
        own = Security().get_connection_args("client")  # type: ignore[no-untyped-call]
        comm: Any = await core.connect(address, timeout=CONNECT_SECONDS, **own)  # type: ignore[no-untyped-call]
        await comm.close()

    try:
        asyncio.run(greet())
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        msg = (
            f"no dask scheduler answers at {address!r} within {CONNECT_SECONDS} s; expected an address such as "
            "tcp://10.0.0.1:8786. Check it, and that the cluster runs."
        )
        raise NetworkError(msg) from error
