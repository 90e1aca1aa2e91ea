from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from mtlsi.evaluation.token_figures import Watch, effective_number, effective_tokens, mean_cosine
from mtlsi.evaluation.without_parts import changed
from mtlsi.model.build import create_model

TASKS = ("semseg", "depth", "normals", "boundary")


def random_tokens(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 0.5


# ---- the figures


def test_the_mean_cosine_is_that_of_a_loop_over_pairs():
    tokens = random_tokens(2, 3, 5, 7)
    found = mean_cosine(tokens).numpy()
    for b, t in np.ndindex(2, 3):
        x, cosines = tokens[b, t].double().numpy(), []
        for i in range(5):
            for j in range(5):
                if i != j:
                    cosines.append(x[i] @ x[j] / math.sqrt(x[i] @ x[i]) / math.sqrt(x[j] @ x[j]))
        assert found[b, t] == pytest.approx(np.mean(cosines), abs=1e-9)


def test_cosines_of_known_tokens():
    def cosine(*tokens):
        return float(mean_cosine(torch.tensor(tokens, dtype=torch.float32)[None, None]))

    assert cosine([1, 2], [2, 4], [3, 6]) == pytest.approx(1)
    assert cosine([1, 0], [-1, 0]) == pytest.approx(-1)
    assert cosine([1, 0], [0, 3], [0, 1]) == pytest.approx(1 / 3)
    assert math.isnan(cosine([1, 0]))


def test_effective_numbers_of_known_shares():
    shares = torch.tensor([[1.0, 1, 1, 0], [0, 0, 7, 0], [0.25, 0.25, 0.25, 0.25], [2, 1, 1, 0]])
    assert effective_number(shares).tolist() == pytest.approx([3, 1, 4, 2**1.5])


def test_effective_tokens_count_the_directions_of_their_spread():
    def effective(*tokens, mean=(9.0, -4.0, 2.0)):
        return float(effective_tokens((torch.tensor(tokens) + torch.tensor(mean))[None, None]))

    cross = ([1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0])
    assert effective(*cross) == pytest.approx(2)
    assert effective(*cross, [0, 0, 1.0], [0, 0, -1.0]) == pytest.approx(3)
    assert effective([1.0, 0, 0], [2.0, 0, 0], [5.0, 0, 0]) == pytest.approx(1)  # all on one line
    assert effective(*([[0.1, 0.2, 0.3]] * 4)) == 1  # all the same


def test_effective_tokens_are_those_of_numpys_covariance():
    tokens = random_tokens(1, 2, 20, 6)
    for t, found in enumerate(effective_tokens(tokens)[0].tolist()):
        variances = np.linalg.eigvalsh(np.cov(tokens[0, t].double().numpy().T))
        shares = variances / variances.sum()
        assert found == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


# ---- watching a network


@pytest.fixture(scope="module")
def watched():
    """A network, what it was shown and what was seen of it: (network, images, watch, its predictions while watched)."""
    torch.manual_seed(0)
    network, watch = create_model("tiny", num_blocks=2).eval(), Watch()
    shown = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network, shown, watch, changed(network, watch.put_on)(shown).final


def inputs_of(network, shown):
    """What reaches every CWIB: [(features, tokens), ...]; and the fused features that reach the distiller."""
    seen, handles = [], []
    for module in (network.decoder.distiller, *network.decoder.cross_window):
        handles.append(module.register_forward_pre_hook(lambda _, given: seen.append(given)))
    with torch.no_grad():
        network(shown)
    for handle in handles:
        handle.remove()
    return seen[1:], seen[0][0]


def test_a_watched_network_predicts_the_same(watched):
    network, shown, _, predicted = watched
    with torch.no_grad():
        assert all(torch.equal(x, predicted[task]) for task, x in network(shown).final.items())


def test_figures_of_tokens_are_means_over_the_images(watched):
    network, shown, watch, _ = watched
    ((_, tokens), _), fused = inputs_of(network, shown)
    found, k = watch.tokens.means(TASKS, TASKS), tokens.shape[2]
    assigned = network.decoder.distiller.assignment(fused).mean(2).detach()  # b t k
    for t, task in enumerate(TASKS):
        entropy = [float(-(x * x.log()).sum()) for x in assigned[:, t]]
        assert found[task] == {
            "tokens": k,
            "mean_cosine": pytest.approx(float(mean_cosine(tokens)[:, t].mean())),
            "effective_tokens": pytest.approx(float(effective_tokens(tokens)[:, t].mean())),
            "effective_assignment": pytest.approx(np.exp(entropy).mean(), rel=1e-4),
        }


def test_figures_of_blocks_compare_them_with_blocks_whose_merge_is_blind(watched):
    network, shown, watch, _ = watched
    inputs, _ = inputs_of(network, shown)
    assert len(watch.blocks) == len(inputs) == 2

    def over(x, features):
        return (x.square().sum((2, 3, 4)).sqrt() / features.square().sum((2, 3, 4)).sqrt()).mean(0)

    for figures, block, (features, tokens) in zip(watch.blocks, network.decoder.cross_window, inputs, strict=True):
        with torch.no_grad():
            refined, blind = block(features, tokens), []
            for half in (0, 1):
                copied = copy.deepcopy(block)
                copied.merge.expand.weight.chunk(2, 1)[half].zero_()
                blind.append(copied(features, tokens))
        expected = {
            "change": over(refined - features, features),
            "through_windows": over(refined - blind[0], features),
            "through_tokens": over(refined - blind[1], features),
        }
        for t, task in enumerate(TASKS):
            values = {name: pytest.approx(float(x[t]), rel=1e-4) for name, x in expected.items()}
            assert figures.means(TASKS, TASKS)[task] == values


def test_tokens_without_an_assignment_and_networks_without_tokens(watched):
    _, shown, _, _ = watched
    pooled, none = Watch(), Watch()
    with torch.no_grad():
        changed(create_model("tiny", distiller=False).eval(), pooled.put_on)(shown)
        changed(create_model("tiny", cross_window=False).eval(), none.put_on)(shown)
    assert pooled.tokens.means(TASKS, TASKS)["depth"].keys() == {"tokens", "mean_cosine", "effective_tokens"}
    assert (none.tokens.rows, none.blocks) == ({}, [])
