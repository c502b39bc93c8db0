"""Finished runs put to use: judged on other data, and their codes written to a file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import pyro_vae
from pyro_vae import codes, config, data
from pyro_vae.checkpoint import load
from pyro_vae.conditional import check_size
from pyro_vae.data import Data, Preparation, Split
from pyro_vae.epochs import own_randomness
from pyro_vae.files import strict_json, write_whole
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.masks import fill
from pyro_vae.networks import eval_mode
from pyro_vae.run import scores
from pyro_vae.vae import VAE

__all__ = ["embed", "judge_run", "preparation", "summary", "write_evaluation"]

PARTS = ("train", "valid", "test", "all")

CHECKED = 4096
"""How many rows are checked at once."""

FILES = ("pyro_vae.data.table", "pyro_vae.data.array")
"""Data of the user's own, which have no split that is anyone else's."""


class Chosen(NamedTuple):
    """The rows of a part, or of all parts in the order of their source, without a copy of them.

    Attributes:
        data: The data set.
        part: The number of the part that each row is in, ``(N,)``.
        place: Its place there, ``(N,)``.
    """

    data: Data
    part: Tensor
    place: Tensor

    def take(self, split: Split, some: slice) -> Tensor:
        """Returns what some rows have in a split."""
        part, place = self.part[some], self.place[some]
        found = split.train.new_empty((len(part), *split.train.shape[1:]))
        for number, rows in enumerate(split):
            here = part == number
            found[here] = rows[place[here]]
        return found

    def rows(self, some: slice, to: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns some rows and their mask, on the device and in the precision of a tensor."""
        mask = self.data.mask
        x = self.take(self.data.x, some).to(to)
        return x, None if mask is None else self.take(mask, some).to(to.device)


def judge_run(
    run: Path | str,
    data: Data | Mapping[str, Any] | None = None,
    *,
    part: str = "test",
    num_particles: int | None = None,
    elbo_particles: int | None = None,
    evidence_rows: int | None = None,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    allow: Sequence[str] = (),
) -> dict[str, Any]:
    """Judges a finished run on other data, or once more on its own.

    Tables are standardized as the run's training data were, not by themselves. The caller's random
    state stays as it is. On the run's own data the figures are those of its ``metrics.json``, to
    the bit for the same number of threads.

    Arguments:
        run: The folder of a finished run.
        data: A data set; or the configuration of one, as in ``{"_target_": "pyro_vae.data.table",
            "path": "new.csv"}``, which is prepared as the run's own were; or ``None``, the run's
            own.
        part: ``"train"``, ``"valid"``, ``"test"`` or ``"all"``. For ``"all"`` a table or an array
            that is configured here is not split, and may have any number of rows.
        num_particles: Samples for each row of the log evidence; ``None``, as those that follow:
            as the run was judged.
        elbo_particles: Samples for each row of the ELBO.
        evidence_rows: At most so many rows, the first, for the log evidence.
        seed: The seed of all draws.
        device: Where to compute.
        allow: Dotted names of classes and functions of other packages that the run may use, as
            in :func:`pyro_vae.load`.

    Returns:
        The figures, in nats per datum; the keys are those of ``metrics.json`` where they mean the
        same, with ``run`` and ``part``.

    Raises:
        ValueError: If there is no such run, it is not finished, an argument is out of range, or
            the data do not fit the run; before any work is done.

    Example:
        >>> import tempfile
        >>> from pyro_vae.run import run
        >>> moons = ["data=moons", "data.n=50", "vae/likelihood=normal", "vae.latent_dim=1"]
        >>> quick = ["train.epochs=1", "evaluate.baseline_components=0"]
        >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
        ...     evidence = run(config.compose([*moons, *quick, f"out={folder}"]))
        ...     judge_run(folder)["log_evidence"] == evidence
        log evidence ...
        True
    """
    chosen, vae, cfg = opened(run, data, part, device, allow)
    given = {
        "num_particles": num_particles,
        "elbo_particles": elbo_particles,
        "evidence_rows": evidence_rows,
    }
    asked = {
        name: cfg.evaluate[name] if value is None else check_size(name, value, least=1)
        for name, value in given.items()
    }
    seed = cfg.seed if seed is None else seed
    weight = next(vae.parameters())
    x, mask = chosen.rows(slice(None), weight)
    with own_randomness(weight.device, seed):
        figures = scores(vae, x, mask, **asked)
    return {
        "run": str(run),
        "part": part,
        **figures,
        **circumstances(chosen.data, vae),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "torch": torch.__version__,
    }


def circumstances(found: Data, vae: VAE) -> dict[str, Any]:
    """Returns what figures were made of."""
    grey = getattr(vae.likelihood, "grey_scale", False)
    sizes = {name: len(rows) for name, rows in found.x._asdict().items()}
    return {
        "data": found.name,
        "binarize": found.binarize,
        "grey_scale": found.binarize == "none" and grey,
        "rows": {"all": sizes["train"]} if unsplit(found) else sizes,
        "latent_dim": vae.latent_dim,
        "parameters": sum(p.numel() for p in vae.parameters()),
    }


def write_evaluation(figures: Mapping[str, Any], out: Path | str | None = None) -> Path:
    """Writes what :func:`judge_run` returned, as strict JSON, whole or not at all.

    Arguments:
        figures: The figures.
        out: The file; ``None``: ``evaluations/DATA-PART.json`` in the folder of the run.

    Returns:
        The file.
    """
    if out is None:
        out = beside(figures["run"], "evaluations", figures["data"], figures["part"], "json")
    path = Path(out).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, strict_json(dict(figures)).encode())
    return path


def beside(run: Path | str, folder: str, name: str, part: str, suffix: str) -> Path:
    """Returns the path of a file about some data in the folder of a run."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("_")
    return Path(run).expanduser() / folder / f"{plain}-{part}.{suffix}"


def summary(figures: Mapping[str, Any], path: Path) -> str:
    """Returns the figures that a terminal shows."""
    count, particles = figures["log_evidence_rows"], figures["log_evidence_particles"]
    lines = [
        f"run           {figures['run']}",
        f"log evidence  {figures['log_evidence']:9.3f} +- {figures['log_evidence_se']:.3f} nats "
        f"per datum, {count} rows of {figures['data']} ({figures['part']})",
        f"              +- {figures['log_evidence_monte_carlo_se']:.3f} from the draws, worth "
        f"{figures['effective_sample_size_min']:.1f} of {particles} or more a row",
        f"ELBO          {figures['elbo']:9.3f} (rate {figures['rate']:.3f}, distortion "
        f"{figures['distortion']:.3f})",
        f"active units  {figures['active_units']:5d} of {figures['latent_dim']}",
        f"evaluation    {path}",
    ]
    return "\n".join(lines)


def embed(
    run: Path | str | VAE,
    data: Data | Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    *,
    part: str = "all",
    rows_at_once: int = 4096,
    device: torch.device | str = "cpu",
    allow: Sequence[str] = (),
) -> Path:
    """Writes the codes of data, a row for each datum, to a parquet or csv file.

    The columns are ``part``, ``row``, ``label`` if there are labels (by name where they have
    names), ``z_mean_0``, ``z_mean_1``, ... and ``z_scale_0``, ...: mean and standard deviation of
    q(z given x) in each dimension. ``row`` is the number of the row in the source from 0, in its
    own file where training and test rows come from two; rows without such numbers are counted in
    their part. All parts are written in the order of the source. The parts of a ``dynamic`` set are
    drawn once by its seed, as ``fixed`` does. Beside the data, memory is needed for
    ``rows_at_once`` rows.

    Arguments:
        run: The folder of a finished run, or a VAE.
        data: As in :func:`judge_run`; for a VAE a data set.
        out: The file, whose name ends in ``.parquet`` (needs the extra ``parquet``) or ``.csv``;
            ``None``: ``codes/DATA-PART.parquet`` in the folder of the run.
        part: As in :func:`judge_run`.
        rows_at_once: The number of rows that are encoded, and written as one group.
        device: Where to compute; a VAE stays where it is.
        allow: As in :func:`judge_run`.

    Returns:
        The file.

    Raises:
        ValueError: As :func:`judge_run`, and if the file cannot be written; before any work.

    Example:
        >>> import pandas, tempfile
        >>> from pyro_vae import VAE, data
        >>> digits = data.digits()
        >>> vae = VAE(digits.event_shape, latent_dim=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = pandas.read_csv(embed(vae, digits, f"{folder}/codes.csv"))
        >>> list(table.columns), len(table)
        (['part', 'row', 'label', 'z_mean_0', 'z_scale_0'], 1797)
    """
    check_size("rows_at_once", rows_at_once, least=1)
    if out is not None:
        codes.check_path(out)
    if isinstance(run, VAE):
        chosen, vae, name = matched(run, data, part), run, ""
    else:
        chosen, vae, _ = opened(run, data, part, device, allow)
        name = str(run)
    if out is None:
        if not name:
            raise ValueError("Expected out to name a .parquet or .csv file for a VAE, got None")
        out = beside(name, "codes", chosen.data.name, part, "parquet")
    facts = {
        "run": name,
        "data": chosen.data.name,
        "binarize": chosen.data.binarize,
        "part": part,
        "pyro_vae": pyro_vae.__version__,
    }
    path = codes.check_path(out)
    with codes.writer(path, facts) as write:
        for start in range(0, len(chosen.part), rows_at_once):
            write(written(vae, chosen, slice(start, start + rows_at_once)))
    return path


@torch.no_grad()
def written(vae: VAE, chosen: Chosen, some: slice) -> dict[str, Any]:
    """Returns some rows of the table of codes, by the names of their columns."""
    x, mask = chosen.rows(some, next(vae.parameters()))
    with eval_mode(vae):
        q = vae.encode(fill(x, mask))
    columns = {**origin(chosen, some), **label(chosen, some)}
    for kind, values in (("mean", q.mean), ("scale", spread(q))):
        numbers = values.cpu().numpy()
        columns |= {f"z_{kind}_{d}": numbers[:, d] for d in range(vae.latent_dim)}
    return columns


def spread(q: Any) -> Tensor:
    """Returns the standard deviation of each dimension."""
    # Of an independent normal it is the scale itself, not the root of its square.
    return q.base_dist.stddev if isinstance(q, torch.distributions.Independent) else q.stddev


def origin(chosen: Chosen, some: slice) -> dict[str, Any]:
    """Returns the columns that say where rows come from."""
    numbers, split = chosen.data.row_numbers, not unsplit(chosen.data)
    names = Split._fields if split else ("all",) * 3
    row = chosen.place[some] if numbers is None else chosen.take(numbers, some)
    return {"part": [names[part] for part in chosen.part[some].tolist()], "row": row.numpy()}


def label(chosen: Chosen, some: slice) -> dict[str, Any]:
    """Returns the column of labels, if there are any."""
    labels, names = chosen.data.labels, chosen.data.label_names
    if labels is None:
        return {}
    values = chosen.take(labels, some)
    if names is None:
        return {"label": values.numpy()}
    return {"label": [names[value] for value in values.tolist()]}


def preparation(run: Path | str, *, allow: Sequence[str] = ()) -> Preparation:
    """Returns how the training data of a run were prepared, as ``data.table(like=...)`` takes it.

    A run without a ``data.json``, as older versions left, has its data made once more.

    Arguments:
        run: The folder of a finished run.
        allow: As in :func:`judge_run`.

    Raises:
        ValueError: If there is no such run, or its file is damaged.
    """
    folder = finished(run)
    if (folder / "data.json").is_file():
        return Preparation.load(folder)
    return made(own(folder, allow)).preparation


def opened(
    run: Path | str,
    source: Data | Mapping[str, Any] | None,
    part: str,
    device: torch.device | str,
    allow: Sequence[str],
) -> tuple[Chosen, VAE, DictConfig]:
    """Returns rows that fit a run, with its VAE and its configuration."""
    check_part(part)
    folder = finished(run)
    # Making a VAE draws weights, in whose place those of the file come.
    with own_randomness(torch.device("cpu"), 0):
        vae = load(folder, allow=allow).to(device)
    like = preparation(folder, allow=allow)
    node = own(folder, allow) if source is None else source
    if isinstance(node, Data):
        found, seed = node, 0
    else:
        found = made(node, like, split=source is None or part != "all")
        seed = node.get("seed", 0)
    found = fixed(found, seed)
    check_form(run, found, like, vae)
    chosen = choose(found, part)
    check_values(vae, chosen)
    return chosen, vae, configuration(folder)


def matched(vae: VAE, source: Any, part: str) -> Chosen:
    """Returns rows that fit a VAE of which there is no run."""
    check_part(part)
    if not isinstance(source, Data):
        raise ValueError(
            f"Expected data to be a pyro_vae.data.Data for a VAE, got {type(source).__name__}"
        )
    check_shape("the VAE", source, tuple(vae.event_shape))
    chosen = choose(fixed(source, 0), part)
    check_values(vae, chosen)
    return chosen


def check_part(part: str) -> None:
    """Raises a ``ValueError`` if there is no part of that name."""
    if part not in PARTS:
        raise ValueError(f"Expected part to be one of {PARTS}, got {part!r}")


def finished(run: Path | str) -> Path:
    """Returns the folder of a finished run, or raises a ``ValueError`` that says what it is."""
    folder = Path(str(run)).expanduser()
    if run is None or not (folder / "config.yaml").is_file():
        found = "which has no config.yaml" if folder.is_dir() else "which is no folder"
        told = "None" if run is None else f"'{run}', {found}"
        raise ValueError(
            f"Expected run to be the folder of a finished run, as in run=outputs/DATE, got {told}"
        )
    if not (folder / "metrics.json").is_file():
        raise ValueError(
            f"Expected run to be the folder of a finished run, got '{run}', which has no "
            f"metrics.json: finish it by its own command with out={run} resume=true"
        )
    return folder


def configuration(folder: Path) -> DictConfig:
    """Returns the configuration of a run."""
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    return cfg


def own(folder: Path, allow: Sequence[str]) -> Mapping[str, Any]:
    """Returns the configuration of a run's own data, if making them runs no foreign code."""
    node = OmegaConf.to_container(configuration(folder).data)
    assert isinstance(node, dict)
    known = {f"pyro_vae.data.{name}" for name in data.__all__} | set(allow)
    unknown = [name for name in targets(node) if name not in known]
    if unknown:
        raise ValueError(
            f"Expected the data of '{folder}' to be made by pyro_vae.data, got {unknown[0]!r}: if "
            f"you trust the run, allow=[{unknown[0]}]"
        )
    return {str(key): value for key, value in node.items()}


def targets(node: Any) -> Iterator[str]:
    """Yields the names of all that a configuration makes."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from targets(child)


def made(node: Mapping[str, Any], like: Preparation | None = None, *, split: bool = True) -> Data:
    """Returns the data of a configuration, a table prepared like others."""
    options = dict(node)
    target = options.get("_target_")
    if not split and target in FILES:
        options |= {"valid": 0, "test": 0}
    if target != "pyro_vae.data.table" or like is None:
        return config.build(options)
    # Handed over past Hydra, which would make lists of it.
    return config.build(options | {"_partial_": True, "like": None})(like=like)


def check_form(run: Path | str, found: Data, like: Preparation, vae: VAE) -> None:
    """Raises a ``ValueError`` if data have not the form of a run's own."""
    check_shape(f"run '{run}'", found, like.event_shape)
    if None not in (found.columns, like.columns) and found.columns != like.columns:
        raise ValueError(
            f"Expected data with the columns {list(like.columns or ())} of run '{run}', in this "
            f"order, got {list(found.columns or ())} of '{found.name}': "
            f"data.table(..., like=reuse.preparation(run)) takes them so"
        )
    if not same(found.scaling, like.scaling) or (like.scaling and found.columns is None):
        state = "as they are" if found.scaling is None else "scaled otherwise"
        raise ValueError(
            f"Expected data scaled as the training data of run '{run}' were"
            f"{', not at all' if like.scaling is None else ''}, got '{found.name}' {state}: "
            f"data.table(..., like=reuse.preparation(run)) does so"
        )
    alike = (found.binarize == "none") == (like.binarize == "none")
    takes_bits = isinstance(vae.likelihood, Bernoulli) and not vae.likelihood.grey_scale
    if not alike and not (takes_bits and binary(found)):
        raise ValueError(
            f"Expected data with binarize={like.binarize!r}, as those of run '{run}', got "
            f"{found.binarize!r} of '{found.name}'"
        )


def binary(found: Data) -> bool:
    """Tells whether all values are zeros and ones, whatever made them so."""
    return all(bool(((x == 0) | (x == 1)).all()) for x in found.x)


def check_shape(whose: str, found: Data, expected: tuple[int, ...]) -> None:
    """Raises a ``ValueError`` if a datum has another shape."""
    if tuple(found.event_shape) != expected:
        raise ValueError(
            f"Expected data of shape {expected}, that of {whose}, got {tuple(found.event_shape)} "
            f"of '{found.name}'"
        )


def same(scaling: data.Scaling | None, other: data.Scaling | None) -> bool:
    """Tells whether two scalings are one."""
    if scaling is None or other is None:
        return scaling is other
    return all(torch.equal(a, b) for a, b in zip(scaling, other, strict=True))


def check_values(vae: VAE, chosen: Chosen) -> None:
    """Raises a ``ValueError`` if values lie outside the likelihood's support."""
    weight = next(vae.parameters())
    for start in range(0, len(chosen.part), CHECKED):
        vae.check(*chosen.rows(slice(start, start + CHECKED), weight))


def fixed(found: Data, seed: int) -> Data:
    """Returns data whose training rows are drawn, once, as ``binarize="fixed"`` draws them."""
    if found.binarize != "dynamic":
        return found
    generator = torch.Generator().manual_seed(seed)
    return found._replace(
        x=found.x._replace(train=torch.bernoulli(found.x.train, generator=generator))
    )


def unsplit(found: Data) -> bool:
    """Tells whether data have no parts."""
    return not len(found.x.valid) and not len(found.x.test)


def choose(found: Data, part: str) -> Chosen:
    """Returns the rows of a part; all in the order of their source, if they come from one.

    Raises:
        ValueError: If there are none.
    """
    kept = range(3) if part == "all" else [PARTS.index(part)]
    sizes = [len(rows) for rows in found.x]
    parts = torch.cat([torch.full((sizes[number],), number) for number in kept])
    chosen = Chosen(found, parts, torch.cat([torch.arange(sizes[number]) for number in kept]))
    if not len(parts):
        raise ValueError(f"Expected part to have rows, got {part!r} of '{found.name}' with none")
    if part != "all" or found.row_numbers is None:
        return chosen
    numbers = torch.cat(found.row_numbers)
    if len(numbers.unique()) < len(numbers):
        return chosen
    order = numbers.argsort()
    return Chosen(found, parts[order], chosen.place[order])
