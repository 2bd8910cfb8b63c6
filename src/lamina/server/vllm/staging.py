"""Copies of adapters that vLLM reads: what was checked is what is served, even if vLLM reads it again after a while.

vLLM drops adapters that are not in use and reads them anew from their folder, without a word. A folder that was
written over meanwhile, as a run's is by the next training, would be served under the old name.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path

from lamina.adapters.adapter import Adapter, read_adapter
from lamina.adapters.hf_peft import CONFIG_FILE, TENSORS_FILE
from lamina.errors import AdapterError, StorageError


class Staging:
    """A folder of copies, which only its owner may write, gone with `close`."""

    def __init__(self, parent: Path | None = None) -> None:
        """
        Args:
            parent: Where it is made, for servers that see other paths than this machine's temporary folder.

        Raises:
            StorageError: It cannot be made.
        """
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="lamina-vllm-", dir=parent))
        except OSError as error:
            raise StorageError.wrap(error, parent or tempfile.gettempdir(), "making a folder for adapters") from error
        if parent is not None:  # another user's server may read it
            self._folder.chmod(0o755)

    def copy(self, adapter: Adapter) -> Path:
        """Copies an adapter's two files, each time to a new folder, and reads the copy to see that it is the same.

        Raises:
            AdapterError: The files changed while they were copied.
            StorageError: They cannot be copied.
        """
        folder = self._folder / f"{adapter.digest.removeprefix('sha256:')[:12]}-{secrets.token_hex(4)}"
        try:
            folder.mkdir()
            for name in (CONFIG_FILE, TENSORS_FILE, *(["lamina.json"] if adapter.lock else [])):
                shutil.copyfile(adapter.path / name, folder / name)
        except OSError as error:
            raise StorageError.wrap(error, folder, "copying the adapter") from error
        if read_adapter(folder).digest != adapter.digest:
            raise AdapterError(f"{adapter.path}: changed while it was copied. Fix: load it again once it is written.")
        return folder

    def drop(self, folder: Path) -> None:
        """Removes a copy."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Removes all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)


def tensor_bytes(folder: Path) -> int:
    """Bytes of an adapter's tensors."""
    return (folder / TENSORS_FILE).stat().st_size
