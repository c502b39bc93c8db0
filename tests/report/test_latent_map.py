"""The map of a report: its embedded values are those of the VAE, bounded, and escaped."""

import base64
import io
import json
import math
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from pyro_vae import VAE, data, evaluate, likelihoods, posteriors, priors, report
from pyro_vae.data import Column, Split
from pyro_vae.report.latent_map import build_map
from pyro_vae.report.latents import Latents
from pyro_vae.report.trained_run import TrainedRun

ATTACK = "</script><b>x"


def make_run(vae, made):
    return TrainedRun(OmegaConf.create({}), made, vae, None, SimpleNamespace(history=[]))


def make_data(x, **more):
    split = Split(x, x[:0], x)
    return data.Data("toy", "none", split, None, "nowhere", **more)


def draw_map(run, evidence=None):
    return build_map(run, Latents(run), evidence)


def read_sprite(sprite, count, height, width):
    """Returns the images of a sprite, ``(count, height, width, channels)``."""
    image = Image.open(io.BytesIO(base64.b64decode(sprite["source"].split(",")[1])))
    pixels = np.atleast_3d(np.asarray(image))
    tiles = pixels.reshape(-1, height, sprite["columns"], width, pixels.shape[-1])
    return tiles.swapaxes(1, 2).reshape(-1, height, width, pixels.shape[-1])[:count]


def to_bytes(x):
    return np.round(x.clamp(0, 1).numpy() * 255)


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    return make_run(VAE((1, 8, 8), 2), data.digits())


def test_the_map_holds_the_rows_of_the_run(digits):
    x = digits.data.x.test
    evidence = evaluate.log_evidence(digits.vae, x[:100], 5, diagnostics=True)
    values = draw_map(digits, evidence).data
    count = len(x)
    means = digits.vae.encode(x).mean.detach()
    np.testing.assert_allclose(np.stack([values["x"], values["y"]], 1), means, rtol=1e-4)
    assert values["row"] == digits.data.row_numbers.test.tolist()
    assert values["label"] == [str(k) for k in digits.data.labels.test.tolist()]
    np.testing.assert_allclose(values["evidence"][:100], evidence.log_evidence, atol=1e-3)
    assert all(math.isnan(value) for value in values["evidence"][100:])
    view = values["view"]
    observed = read_sprite(view["data"], count, 8, 8)[..., 0]
    np.testing.assert_array_equal(observed, to_bytes(x[:, 0]))
    fitted = read_sprite(view["reconstructions"], count, 8, 8)[..., 0]
    np.testing.assert_allclose(fitted, to_bytes(digits.vae.reconstruct(x)[:, 0]), atol=1)


def test_the_grid_is_decoded_over_the_whole_map(digits):
    values = draw_map(digits).data
    side, (xs, ys) = values["side"], values["ranges"]
    assert side == 21
    assert xs[0] < min(values["x"]) < max(values["x"]) < xs[1]
    assert ys[0] < min(values["y"]) < max(values["y"]) < ys[1]
    assert xs[1] - xs[0] == pytest.approx(ys[1] - ys[0])
    tiles = read_sprite(values["view"]["grid"], side**2, 8, 8)[..., 0]
    for row, column in ((0, 0), (0, 20), (20, 0), (7, 13)):
        z = torch.tensor(
            [xs[0] + column / 20 * (xs[1] - xs[0]), ys[0] + row / 20 * (ys[1] - ys[0])]
        )
        expected = to_bytes(digits.vae.decode(z).mean.detach()[0])
        np.testing.assert_allclose(tiles[side * row + column], expected, atol=1)


def test_more_dimensions_are_projected_as_in_the_figure_and_not_decoded():
    run = make_run(VAE((1, 8, 8), 3), data.digits())
    latents = Latents(run)
    latent_map = build_map(run, latents)
    np.testing.assert_allclose(latent_map.data["x"], latents.tsne[:, 0], rtol=1e-4)
    assert latent_map.data["axes"] == ["t-SNE 1", "t-SNE 2"]
    assert latent_map.data["side"] == 0
    assert "grid" not in latent_map.data["view"]
    assert "has 3 dimensions; it needs 2" in latent_map.caption


@pytest.mark.parametrize(
    ("parts", "size", "reason"),
    [
        ((priors.UniformSphere, posteriors.PowerSpherical), 2, "lie on the sphere"),
        ((priors.Dirichlet, posteriors.LogisticNormal), 2, "lie on the simplex"),
        ((priors.Normal, posteriors.Normal), 1, "has 1 dimension; it"),
    ],
)
def test_other_latents_have_points_but_no_grid(parts, size, reason):
    run = make_run(VAE((1, 8, 8), size, prior=parts[0], posterior=parts[1]), data.digits())
    latent_map = draw_map(run)
    assert reason in latent_map.caption
    assert latent_map.data["side"] == 0
    assert len(latent_map.data["x"]) == 359


@pytest.mark.parametrize("variables", [1, 2])
def test_one_hot_latents_have_no_map(variables):
    vae = VAE(
        (1, 8, 8), 4,
        prior=partial(priors.OneHot, variables=variables),
        posterior=partial(posteriors.StraightThrough, variables=variables),
    )  # fmt: skip
    latent_map = draw_map(make_run(vae, data.digits()))
    assert latent_map.data is None
    assert "one-hot vectors do not lie in a plane" in latent_map.caption


def test_missing_pixels_are_transparent_and_empty_rows_left_out():
    torch.manual_seed(0)
    x = torch.rand(6, 1, 4, 5)
    mask = torch.rand(6, 1, 4, 5) > 0.3
    mask[2] = False
    made = make_data(x, mask=Split(mask, mask[:0], mask))
    values = draw_map(make_run(VAE((1, 4, 5), 2, likelihood=likelihoods.Normal), made)).data
    assert values["row"] == [0, 1, 3, 4, 5]
    tiles = read_sprite(values["view"]["data"], 5, 4, 5)
    kept = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(tiles[..., 1] == 255, mask[kept, 0])
    np.testing.assert_array_equal(
        tiles[..., 0][mask[kept, 0]], to_bytes(x[kept, 0])[mask[kept, 0].numpy()]
    )


def test_a_table_has_its_words_and_units_and_gaps():
    columns = [Column(ATTACK, "real"), Column("town", "categorical", ("Bern", "Oslo"))]
    part = likelihoods.Columns((2,), columns=columns)
    x = torch.tensor([[1.5, 1.0], [2.5, 0.0], [-3.0, 1.0]])
    part.initialize(x)
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    made = make_data(
        x, mask=Split(mask, mask[:0], mask), columns=(ATTACK, "town"),
        schema=data.Schema(tuple(columns)),
    )  # fmt: skip
    vae = VAE((2,), 2, likelihood=part)
    view = draw_map(make_run(vae, made)).data["view"]
    assert view["names"] == [ATTACK, "town"]
    assert [[cell[1] for cell in row] for row in view["rows"]] == [
        ["1.5", "Oslo"], ["2.5", None], [None, "Oslo"],
    ]  # fmt: skip
    means = vae.reconstruct(x, mask=mask)
    assert float(view["rows"][0][0][2]) == pytest.approx(means[0, 0].item(), rel=1e-3)
    assert view["rows"][0][1][2] == ("Bern", "Oslo")[int(means[0, 1])]
    assert len(view["grid"]) == 21**2


def test_counts_have_the_largest_columns_at_the_sum_of_the_row():
    torch.manual_seed(0)
    counts = torch.poisson(torch.rand(8, 40) * 9)
    vae = VAE((40,), 2, likelihood=partial(likelihoods.Poisson, size_factor="row_sum"))
    vae.likelihood.initialize(counts)
    made = make_data(counts, columns=tuple(f"gene{i}" for i in range(40)))
    view = draw_map(make_run(vae, made)).data["view"]
    row = view["rows"][3]
    assert len(row) == 12
    assert [float(value) for _, value, _ in row] == counts[3].topk(12).values.tolist()
    places = [int(view["names"][place][4:]) for place, _, _ in row]
    assert [float(value) for _, value, _ in row] == counts[3, places].tolist()
    p = vae.decode(vae.encode(counts).mean).at_size(counts.sum(1))
    shown = [float(mean) for _, _, mean in row]
    np.testing.assert_allclose(shown, p.mean[3, places].detach(), rtol=1e-3)


def test_vectors_are_lines_and_long_ones_are_averaged():
    x = torch.arange(256.0).repeat(4, 1) + torch.arange(4.0).unsqueeze(1)
    vae = VAE((256,), 2, likelihood=likelihoods.Normal)
    view = draw_map(make_run(vae, make_data(x))).data["view"]
    np.testing.assert_allclose(view["data"], x.view(4, 64, 4).mean(-1), rtol=1e-3)
    np.testing.assert_allclose(
        view["reconstructions"], vae.reconstruct(x).view(4, 64, 4).mean(-1), rtol=1e-3
    )
    assert (len(view["grid"]), view["length"]) == (21**2, 256)


def test_the_grid_of_a_conditional_vae_names_its_covariates():
    made = data.digits(covariates="label")
    torch.manual_seed(0)
    vae = VAE((1, 8, 8), 2, covariate_dim=10)
    run = make_run(vae, made)
    latent_map = draw_map(run)
    assert f"first held-out row, label = {made.labels.test[0].item()}." in latent_map.caption
    (x, _), (y, _) = latent_map.data["ranges"]
    z = torch.tensor([[x, y]])
    expected = to_bytes(vae.decode(z, made.covariates.test[:1]).mean.detach()[0, 0])
    tiles = read_sprite(latent_map.data["view"]["grid"], 1, 8, 8)[..., 0]
    np.testing.assert_allclose(tiles[0], expected, atol=1)


@pytest.mark.parametrize("shape", [(3, 48, 48), (28, 28), (5000,)])
def test_the_map_of_noise_is_bounded(shape):
    x = torch.rand(1100, *shape)
    vae = VAE(shape, 2, likelihood=likelihoods.Normal)
    values = draw_map(make_run(vae, make_data(x))).data
    assert len(values["x"]) <= 1000
    assert len(json.dumps(values)) < 2.6e6


def test_no_name_closes_the_script(digits, tmp_path):
    latent_map = report.LatentMap(ATTACK, {"names": [ATTACK], "value": math.nan})
    path = report.write(report.Report("t", {}, [], [], [], [], latent_map=latent_map), tmp_path)
    page = path.read_text()
    assert ATTACK not in page
    assert "://" not in page
    assert not re.search(r"\son\w+=", page)
    embedded = re.search(r'id="map-data">(.*?)</script>', page).group(1)
    assert json.loads(embedded) == {"names": [ATTACK], "value": None}


def map_labels(labels, names):
    x = torch.rand(len(labels), 3)
    split = Split(labels, labels[:0], labels)
    made = make_data(x, label_names=names)._replace(labels=split)
    return draw_map(make_run(VAE(3, 2, likelihood=likelihoods.Normal), made)).data


def test_numbers_with_gaps_have_a_scale_of_their_values():
    # Ranks of more numbers than a legend takes, the last one for missing numbers.
    names = (*(f"{age / 2}" for age in range(30)), "missing")
    values = map_labels(torch.arange(31), names)
    assert values["label"] == [f"{age / 2}" for age in range(30)] + ["missing"]
    assert [name for name, _ in values["legend"]] == ["0", "14.5", "missing"]
    assert values["color"][:30] == sorted(values["color"][:30])
    assert values["color"][30] == values["legend"][2][1] == len(values["palette"]) - 1


def test_more_names_than_a_legend_takes_have_no_colours():
    values = map_labels(torch.arange(60), tuple(f"person {k}" for k in range(60)))
    assert (values["legend"], set(values["color"])) == ([], {0})
    assert values["label"][59] == "person 59"


def test_different_long_names_stay_different():
    values = map_labels(torch.tensor([0, 1, 0]), ("a" * 40, "a" * 41))
    assert len({color for _, color in values["legend"]}) == 2
    assert all(len(name) < 30 for name, _ in values["legend"])
