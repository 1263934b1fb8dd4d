"""FedAFD's arithmetic by hand: similarity, weights of clients, discriminators' losses, fusion."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from client_app.methods.fedafd.adversary import Discriminator, fooled, judged, told_apart, verdict
from client_app.methods.fedafd.fused import GranularityFusion
from florilegium.learning.similarity import match_scores, similarity_weights, weighted

LOG2 = math.log(2)


def test_the_diagonal_by_hand():
    """Anchors e1, e2. Client A sends them: log(e / (e + 1)) = -0.3133. B sends them swapped: log(1 / (1 + e))."""
    anchor = torch.eye(2)
    score = torch.stack([match_scores(x, anchor) for x in (torch.eye(2), torch.eye(2).flip(0))])
    assert score[0].tolist() == pytest.approx([-0.31326] * 2, abs=1e-5)
    assert score[1].tolist() == pytest.approx([-1.31326] * 2, abs=1e-5)
    w = similarity_weights(score)  # e / (e + 1) = 0.73106 and 0.26894
    assert w[:, 0].tolist() == pytest.approx([0.73106, 0.26894], abs=1e-5)
    mean = weighted(torch.stack([torch.eye(2), torch.eye(2).flip(0)]), w)
    assert mean[0].tolist() == pytest.approx([0.73106, 0.26894], abs=1e-5)  # not of length one, as released


def test_temperature_sharpens():
    """Cosines 0.9, 0.5, 0 to the server: e^.9 : e^.5 : 1 = .48 .32 .20 at tau = 1. At 0.1 among 500 anchors, whose
    others sum to 499 e^(100 / 512) = 607: 8103 / 8710 : 148 / 755 : 1 / 608, as shares .82 .17 .00.
    """
    random = torch.Generator().manual_seed(0)
    anchor = normalize(torch.randn(500, 256, generator=random), dim=-1)
    noise = normalize(torch.randn(500, 256, generator=random), dim=-1)
    reps = [normalize(c * anchor + (1 - c * c) ** 0.5 * noise, dim=-1) for c in (0.9, 0.5, 0.0)]
    for tau, expected in ((1.0, (0.48, 0.32, 0.20)), (0.1, (0.82, 0.17, 0.00))):
        w = similarity_weights(torch.stack([match_scores(x, anchor, tau) for x in reps])).mean(1)
        assert w.tolist() == pytest.approx(expected, abs=0.03)  # the noise is not exactly at right angles


@pytest.mark.parametrize("rows", [1, 7, 64, 1000, None])
def test_in_pieces_it_is_the_same(rows):
    random = torch.Generator().manual_seed(1)
    rep, anchor = (normalize(torch.randn(300, 32, generator=random), dim=-1) for _ in range(2))
    whole = (rep @ anchor.T).log_softmax(-1).diagonal()
    assert (match_scores(rep, anchor, rows=rows) - whole).abs().max() < 1e-6


def test_large_scores_do_not_overflow_and_shapes_are_checked():
    anchor = 100 * torch.eye(3)
    assert match_scores(anchor, anchor, 0.01).tolist() == [0.0] * 3
    assert match_scores(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    with pytest.raises(ValueError, match=r"\(2, 3\) and anchors \(3, 3\)"):
        match_scores(anchor[:2], anchor)


def constant(logit):
    """A discriminator that always says this."""
    D = Discriminator(4, (3,))
    for p in D.parameters():
        torch.nn.init.zeros_(p)
    torch.nn.init.constant_(D.net[-1].bias, logit)
    return D


def test_the_discriminators_size_is_the_papers():
    assert sum(p.numel() for p in Discriminator(256).parameters()) == 41_217


def test_losses_by_hand():
    x = torch.ones(2, 4)
    assert told_apart(constant(0.0), x, x).item() == pytest.approx(2 * LOG2)
    assert told_apart(constant(1.0), x, x).item() == pytest.approx(0.31326 + 1.31326, abs=1e-5)
    assert fooled(constant(1.0), x).item() == pytest.approx(0.31326, abs=1e-5)  # -log D
    assert fooled(constant(1.0), x, "minimax").item() == pytest.approx(-1.31326, abs=1e-5)  # log(1 - D)


def test_a_double_sigmoid_confines_the_loss():
    """Released code: real in [0.313, 0.693], fake in [0.693, 1.313]."""
    for logit, real, fake in ((40.0, 0.31326, 1.31326), (-40.0, LOG2, LOG2)):
        D, x = constant(logit), torch.ones(2, 4)
        assert judged(D(x), True, True).item() == pytest.approx(real, abs=1e-4)
        assert judged(D(x), False, True).item() == pytest.approx(fake, abs=1e-4)


def test_where_the_gradients_go():
    """D's loss leaves the features alone; grl turns minimax's fake term round for them, and not for D."""
    torch.manual_seed(0)
    D = Discriminator(4, (3,))
    z = torch.randn(5, 4, requires_grad=True)
    told_apart(D, torch.randn(5, 4), z).backward()
    assert z.grad is None and D.net[0].weight.grad.abs().sum() > 0
    by = {form: torch.autograd.grad(fooled(D, z, form), [z, D.net[0].weight]) for form in ("minimax", "grl")}
    assert torch.allclose(by["grl"][0], by["minimax"][0]) and torch.allclose(by["grl"][1], -by["minimax"][1])


def test_a_verdict_tells_a_collapsed_discriminator():
    x = torch.ones(4, 4)
    assert verdict(constant(3.0), x, -x) == {"accuracy": 0.5, "gap": 0.0}  # it says "real" of everything


def test_fusion_has_the_papers_parameters():
    """d = 256, r = 4: 134,912 with all four branches; the released code uses 101,184 of them."""
    assert sum(p.numel() for p in GranularityFusion(256).parameters()) == 134_912
    assert sum(p.numel() for p in GranularityFusion(256, share_pool_branch=True).parameters()) == 101_184


def gate_of(fusion, share1, share2):
    """Last layers that give the same gate everywhere: M(x + g) = share1, M'(h) = share2."""
    for net, share in ((fusion.local1, share1), (fusion.local2, share2), (fusion.pooled1, 0.5), (fusion.pooled2, 0.5)):
        if net is not None:
            torch.nn.init.zeros_(net[-1].weight)
            torch.nn.init.constant_(net[-1].bias, math.log(share / (1 - share)))


def test_two_levels_by_hand():
    """The second gate mixes the ORIGINAL x and g: 0.75 * 1 + 0.25 * (-1) = 0.5, whatever the first one says."""
    fusion = GranularityFusion(4, 2).eval()
    gate_of(fusion, 0.9, 0.75)
    x, g = torch.ones(3, 4), -torch.ones(3, 4)
    first, second = fusion.gates(x, g)
    assert first[0, 0].item() == pytest.approx(0.9) and second[0, 0].item() == pytest.approx(0.75)
    assert torch.allclose(fusion(x, g), torch.full((3, 4), 0.5))


def test_a_shared_branch_is_level_ones():
    fusion = GranularityFusion(4, 2, share_pool_branch=True).eval()
    gate_of(fusion, 0.5, 0.5)
    torch.nn.init.constant_(fusion.pooled1[-1].bias, math.log(3))  # T2 says 0.75 in both levels
    first, second = fusion.gates(torch.ones(1, 4), torch.zeros(1, 4))
    assert first[0, 0].item() == pytest.approx(0.75) and second[0, 0].item() == pytest.approx(0.75)


def test_with_equal_features_fusion_changes_nothing():
    fusion, x = GranularityFusion(8), torch.randn(5, 8)
    assert torch.allclose(fusion(x, x), x, atol=1e-6)
