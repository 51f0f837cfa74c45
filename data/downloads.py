"""
Files from a server, whole or to be gone on with: what a connection that broke off or a process that was killed has left in `part` is not
fetched again.

    sha256 = fetch(url, part)          the file is in `part`; the SHA-256 that the server announces, or None

Who fetches compares it with the bytes and gives the file its name.
"""
import os
import re

import requests
import tqdm

from common.errors import UserError
from common.interrupts import Stopped
from data.shards import writing
from data.sources import CONNECT_SECONDS, READ_SECONDS

BLOCK = 1 << 16  # bytes that are kept or lost together
ATTEMPTS = 5  # at a download that keeps breaking off but each time brings something


def announced(response):
    """The ETag that a hub tells of a file: of one in Git LFS its SHA-256, else Git's SHA-1 of it; '' where there is none. The storage that
    it redirects to has ETags of other kinds, so only the first answer counts."""
    headers = (response.history or [response])[0].headers
    return (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')


def announced_sha256(response):
    tag = announced(response)
    return tag if re.fullmatch("[0-9a-f]{64}", tag) else None


def bad_answer(url, response):
    return UserError(f"{url}: the server answered {response.status_code} {response.reason}; is it the hub, or a mirror "
                     "of it (HF_ENDPOINT)?")


def head(url, allow_redirects):
    return requests.head(url, allow_redirects=allow_redirects, timeout=(CONNECT_SECONDS, READ_SECONDS))


def fetch_once(url, part, stop=None):
    """One request for what the file `part` does not have yet. Returns the announced SHA-256 or None. What came stays
    there when the connection breaks off (RequestException). Raises UserError for an answer that is no file, Stopped."""
    have = os.path.getsize(part) if os.path.exists(part) else 0
    ask = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=ask, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
        if have and response.status_code == 416:  # nothing beyond what there is: it was whole already
            return announced_sha256(response)
        goes_on = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status_code != 200 and not goes_on:
            raise bad_answer(url, response)
        have = have if goes_on else 0  # a server that cannot begin in the middle sends everything
        length = response.headers.get("Content-Length")
        with (open(part, "r+b" if goes_on else "wb") as f,
              tqdm.tqdm(desc=url.rpartition("/")[2], initial=have, total=length and have + int(length), unit="B",
                        unit_scale=True, disable=None, leave=False) as bar):
            f.seek(have)
            for block in response.iter_content(BLOCK):
                with writing(part):
                    f.write(block)
                bar.update(len(block))
                if stop is not None and stop.signal:
                    raise Stopped
            with writing(part):
                f.flush()
                os.fsync(f.fileno())
        return announced_sha256(response)


def fetch(url, part, stop=None):
    """fetch_once() as often as it brings something. RequestException where it does not."""
    for attempt in range(1, ATTEMPTS + 1):
        before = os.path.getsize(part) if os.path.exists(part) else 0
        try:
            return fetch_once(url, part, stop)
        except requests.exceptions.RequestException:
            if attempt == ATTEMPTS or not os.path.exists(part) or os.path.getsize(part) <= before:
                raise
