"""
A model's files from the hub, in huggingface_hub's own cache. A download that breaks off, or whose process is killed, goes on where it
stopped (that client would begin again), and the bytes have the hash that the hub announces, each time that they are used. Without a
network what the cache holds is taken. HF_ENDPOINT names a mirror. Two files are read, config.json and model.safetensors: no code.
"""
import hashlib
import os
import re

import requests
from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock

from common.errors import UserError
from data import downloads
from data.sources import network_reason

SHA256, GIT_SHA1 = "[0-9a-f]{64}", "[0-9a-f]{40}"  # of a file in Git LFS, and of another one: the ETags of a hub


def download(repository, name):
    """The folder of a model, in huggingface_hub's cache. name: what init_from says. Raises UserError."""
    try:
        for file in ("config.json", "model.safetensors"):
            fill_cache(repository, file)
            place = hf_hub_download(repository, file, endpoint=os.environ.get("HF_ENDPOINT"))
            check(place, os.path.basename(os.path.realpath(place)))
        return os.path.dirname(place)
    except UserError as error:
        reason = str(error)
    except requests.exceptions.RequestException as error:
        reason = f"{network_reason(error)}; what has come is kept and the same command goes on"
    except Exception as error:  # the hub's client raises those of several libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise UserError(f"init_from = '{name}': {repository} cannot be downloaded ({reason}); give a folder that holds its "
                    "config.json and model.safetensors")


def fill_cache(repository, file):
    """Fetch a file to where huggingface_hub's cache has its bytes (blobs/, by ETag), if the hub can be asked and they are not there."""
    url = hf_hub_url(repository, file, endpoint=os.environ.get("HF_ENDPOINT"))
    if constants.HF_HUB_OFFLINE:
        return
    try:
        answer = downloads.head(url, allow_redirects=False)
    except requests.exceptions.RequestException:
        return  # the client says what is wrong, or has the file
    tag = downloads.announced(answer)
    if answer.status_code >= 400 or not re.fullmatch(f"{SHA256}|{GIT_SHA1}", tag):
        return
    blob = os.path.join(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"), "blobs", tag)
    os.makedirs(os.path.dirname(blob), exist_ok=True)
    with WeakFileLock(f"{blob}.lock"):  # of several processes one fetches it
        if not os.path.exists(blob):
            downloads.fetch(url, f"{blob}.part")
            check(f"{blob}.part", tag)
            os.replace(f"{blob}.part", blob)


def check(path, tag):
    """Raises UserError, and removes the file, where its bytes do not have the hash that the hub's ETag is."""
    if re.fullmatch(SHA256, tag):
        found = hashlib.sha256()
    elif re.fullmatch(GIT_SHA1, tag):
        found = hashlib.sha1(f"blob {os.path.getsize(path)}\0".encode())
    else:
        return
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            found.update(block)
    if found.hexdigest() != tag:
        os.remove(os.path.realpath(path))
        raise UserError(f"{path}: its hash is {found.hexdigest()}, the hub announced {tag}; it was removed")
