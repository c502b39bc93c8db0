"""The contenders: what each is, where it runs, and what it can train.

To add one, write a module with ``prepare(case, data, device, **options)``, which returns a
:class:`contenders.base.Runner`, and a row in :data:`CONTENDERS`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from cases import Case

STEPS = ("elbo", "iwae", "conv")
EPOCHS = ("epoch", "grey")
WHOLE = (*STEPS, *EPOCHS)


class Contender(NamedTuple):
    """One way to train.

    Attributes:
        module: The module of this package that has ``prepare``.
        says: What it measures.
        trains: The kinds of cases that it can train.
        options: What ``prepare`` is given besides.
        python: The name of the environment that it needs: ``"own"``, ``"jax"`` or ``"pythae"``.
        devices: Where it runs.
    """

    module: str
    says: str
    trains: tuple[str, ...] = STEPS
    options: Mapping[str, Any] = MappingProxyType({})
    python: str = "own"
    devices: tuple[str, ...] = ("cpu", "cuda")


def kind(case: Case) -> str:
    """Returns the kind of a case."""
    if case.epoch:
        return "epoch" if case.binarize else "grey"
    if not case.hidden:
        return "conv"
    return "iwae" if case.particles else "elbo"


def pyro(says: str, trains: tuple[str, ...], **options: Any) -> Contender:
    """Makes a row for one of Pyro's own estimators."""
    return Contender("pyro_svi", f"Pyro's SVI, {says}", trains, options)


def compiled(products: str, devices: tuple[str, ...], **options: Any) -> Contender:
    """Makes a row for the compiled step."""
    more = "".join(
        f", {name} {value}" for name, value in options.items() if name not in ("apart", "loop")
    )
    more += ", 32 steps in a call" * bool(options.get("loop"))
    update = "Adam's own update after it" if options.get("apart") else "with Adam's update"
    says = f"pyro_vae.compile {update}, products {products}{more}"
    return Contender("ours", says, STEPS, {"products": products, **options}, devices=devices)


ELBO = ("elbo", "conv")
CPU = ("cpu",)
CONTENDERS = {
    "hand": Contender("handwritten", "hand-written PyTorch, eager, fused Adam", WHOLE),
    "hand_compiled": Contender(
        "handwritten",
        "hand-written PyTorch, its loss by torch.compile, fused Adam",
        WHOLE,
        {"mode": "default"},
    ),
    "hand_graphs": Contender(
        "handwritten",
        "hand-written PyTorch, its loss by torch.compile with CUDA graphs, fused Adam",
        WHOLE,
        {"mode": "reduce-overhead"},
        devices=("cuda",),
    ),
    "pyro_trace": pyro("Trace_ELBO, no validation", ELBO, loss="Trace_ELBO"),
    "pyro_trace_checked": pyro(
        "Trace_ELBO, validation on, as by default", ELBO, loss="Trace_ELBO", checked=True
    ),
    "pyro_meanfield": pyro("TraceMeanField_ELBO, no validation", ELBO, loss="TraceMeanField_ELBO"),
    "pyro_meanfield_checked": pyro(
        "TraceMeanField_ELBO, validation on, as by default",
        ELBO,
        loss="TraceMeanField_ELBO",
        checked=True,
    ),
    "pyro_jit_trace": pyro("JitTrace_ELBO, no validation", ELBO, loss="JitTrace_ELBO"),
    "pyro_jit_meanfield": pyro(
        "JitTraceMeanField_ELBO, no validation, repaired: as released it traces at each step",
        ELBO,
        loss="JitTraceMeanField_ELBO",
    ),
    "pyro_renyi": pyro(
        "RenyiELBO(alpha=0), particles vectorized, no validation", ("iwae",), loss="RenyiELBO"
    ),
    "numpyro_step": Contender(
        "numpyro_svi",
        "NumPyro's SVI.update under jit, a call a step",
        (*STEPS, "epoch"),
        {"loop": False},
        "jax",
    ),
    "numpyro_loop": Contender(
        "numpyro_svi",
        "NumPyro's SVI.update in a jitted fori_loop over an epoch, a call an epoch",
        (*STEPS, "epoch"),
        {"loop": True},
        "jax",
    ),
    "pythae": Contender(
        "pythae_trainer",
        "pythae's BaseTrainer.train_step (a whole epoch, its own DataLoader), divided by batches",
        ("elbo", *EPOCHS),
        python="pythae",
    ),
    "loader": Contender(
        "loader",
        "DataLoader and ToTensor, hand-written loop, Adam by default, loss.item() each step",
        EPOCHS,
    ),
    "ours_eager": Contender("ours", "objectives of pyro_vae, eager, fused Adam"),
    "ours_mkl": compiled("mkl", CPU),
    "ours_onednn": compiled("onednn", CPU),
    "ours_auto": compiled("auto", ("cpu", "cuda")),
    "ours_loop": compiled("auto", CPU, loop=True),
    "ours_apart": compiled("auto", CPU, apart=True),
    "ours_bfloat16": compiled("auto", ("cpu", "cuda"), precision="bfloat16"),
    "fit_eager": Contender("fit", "pyro_vae.fit(compile=False)", EPOCHS, {"compile": False}),
    "fit": Contender("fit", "pyro_vae.fit(compile=True)", EPOCHS, {"compile": True}),
}
