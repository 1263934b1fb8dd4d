"""LabVote and MultiRepFusion: the invariants of the method document, with numbers worked by hand."""

import math

import pytest
import torch

from florilegium.learning import losses
from florilegium.methods.fedmmkt import consensus

# three clients, two samples, three classes
LABELS_KN = torch.tensor([[0, 2], [0, 1], [1, 1]])


def test_entropy_of_the_uniform_is_log_c_and_its_confidence_one_over_c():
    uniform = torch.full((5, 24), 1 / 24)
    assert torch.allclose(losses.entropy(uniform), torch.full((5,), math.log(24)))
    assert torch.allclose(consensus.confidence(uniform, "exp_neg"), torch.full((5,), 1 / 24))
    assert torch.allclose(consensus.confidence(uniform, "normalized"), torch.zeros(5), atol=1e-6)


def test_a_certain_prediction_weighs_one():
    certain = torch.eye(3)
    assert torch.allclose(consensus.confidence(certain, "exp_neg"), torch.ones(3), atol=1e-6)
    assert torch.allclose(consensus.confidence(certain, "normalized"), torch.ones(3), atol=1e-6)
    assert torch.allclose(consensus.confidence(certain, "inverse"), torch.full((3,), 100.0), rtol=1e-3)


def test_labvote_weighs_votes_by_confidence():
    # sample 0: class 0 has .2 + .3 = .5, class 1 has .9 -> 1, voted by one of three
    # sample 1: class 2 has .2, class 1 has .3 + .9 = 1.2 -> 1, voted by two of three
    weights = torch.tensor([[0.2, 0.2], [0.3, 0.3], [0.9, 0.9]])
    label, keep, votes = consensus.labvote(LABELS_KN, weights, 3, threshold=0.5)
    assert label.tolist() == [1, 1] and votes.tolist() == [1, 2] and keep.tolist() == [False, True]


def test_labvote_ties_go_to_the_lowest_class():
    label, _, _ = consensus.labvote(torch.tensor([[2], [1]]), torch.ones(2, 1), 3, 0.5)
    assert label.tolist() == [1]


@pytest.mark.parametrize(
    "threshold, kept",
    [(0.0, [True, True]), (1 / 3, [True, True]), (2 / 3, [True, True]), (0.7, [False, False]), (1.0, [False, False])],
)
def test_threshold_counts_votes_safely_from_floating_point(threshold, kept):
    assert consensus.enough_votes(LABELS_KN, torch.tensor([0, 1]), threshold).tolist() == kept


def test_labvote_does_not_depend_on_the_order_of_clients():
    g = torch.Generator().manual_seed(0)
    labels, weights = torch.randint(5, (8, 50), generator=g), torch.rand(8, 50, generator=g)
    order = torch.randperm(8, generator=g)
    one, other = (consensus.labvote(y, w, 5, 0.5) for y, w in ((labels, weights), (labels[order], weights[order])))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_one_bounded_client_cannot_overturn_an_agreement_that_weighs_more():
    labels = torch.tensor([[1], [0], [0]])
    uploaded = torch.tensor([[1e6], [0.6], [0.6]])  # client 0 lies about its confidence
    label, _, _ = consensus.labvote(labels, consensus.bounded(uploaded, "exp_neg"), 2, 0.5)
    assert label.tolist() == [0]


def test_balanced_weights_have_mean_one_per_client():
    # client 0 is always sure; balanced it weighs 1 everywhere, and client 1 wins where it is surer than usual
    weights = torch.tensor([[0.9, 0.9], [0.1, 0.3]])
    assert torch.allclose(consensus.balanced(weights), torch.tensor([[1.0, 1.0], [0.5, 1.5]]))
    labels = torch.tensor([[0, 0], [1, 1]])
    assert consensus.labvote(labels, weights, 2, 0.5)[0].tolist() == [0, 0]
    assert consensus.labvote(labels, consensus.balanced(weights), 2, 0.5)[0].tolist() == [0, 1]


def test_the_drawn_class_votes_only_when_asked():
    labels, weights = torch.tensor([[0], [1]]), torch.tensor([[0.6], [0.5]])
    drawn = torch.tensor([1])
    assert consensus.labvote(labels, weights, 2, 0.5, drawn)[0].tolist() == [0]
    assert consensus.labvote(labels, weights, 2, 0.5, drawn, prompt_weight=0.2)[0].tolist() == [1]


def test_single_key_attention_forgets_the_query():
    g = torch.Generator().manual_seed(1)
    other = torch.randn(6, 24, generator=g)
    a, b = (consensus.cross_attention(torch.randn(6, 24, generator=g), other, "single", 1.0) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(a, other)


@pytest.mark.parametrize("kind", ["batch", "channel", "single"])
def test_zero_residual_is_the_identity(kind):
    q, other = torch.randn(6, 24), torch.randn(6, 24)
    assert torch.equal(consensus.cross_attention(q, other, kind, residual=0.0), q)


def test_batch_attention_follows_a_permutation_of_samples_and_chunks_do_not_matter():
    g = torch.Generator().manual_seed(2)
    q, other = torch.randn(9, 12, generator=g), torch.randn(9, 12, generator=g)
    order = torch.randperm(9, generator=g)
    whole = consensus.cross_attention(q, other, "batch")
    assert torch.allclose(consensus.cross_attention(q[order], other[order], "batch"), whole[order], atol=1e-6)
    assert torch.allclose(consensus.cross_attention(q, other, "batch", rows=2), whole, atol=1e-6)


def test_contrastive_score_by_hand():
    # orthonormal rows and anchors, tau 1: the match has cosine 1, the others 0 -> 1 - log(e + 1)
    eye = torch.eye(2)
    expected = 1 - math.log(math.e + 1)
    assert torch.allclose(consensus.contrastive_score(eye, eye, 1.0), torch.full((2,), expected))
    # without j = i the denominator is exp(0) = 1, so the score is the cosine itself
    assert torch.allclose(consensus.contrastive_score(eye, eye, 1.0, include_self=False), torch.ones(2))


def test_scores_do_not_see_the_length_of_a_representation():
    r, anchor = torch.randn(7, 16), torch.randn(7, 16)
    short, long = (consensus.contrastive_score(scale * r, anchor) for scale in (1, 1000))
    assert torch.allclose(short, long, atol=1e-3)


def test_equal_clients_weigh_the_same_and_weights_sum_to_one():
    reps = torch.randn(1, 10, 24).repeat(4, 1, 1)
    _, weights = consensus.fuse(reps, ["image"] * 2 + ["text"] * 2)
    assert torch.allclose(weights, torch.full((4, 10), 0.25), atol=1e-5)


def test_per_modality_weights_are_halved():
    weights = consensus.client_weights(torch.zeros(3, 2), ["image", "text", "text"], "per_modality")
    assert torch.allclose(weights, torch.tensor([[0.5, 0.5], [0.25, 0.25], [0.25, 0.25]]))


@pytest.mark.parametrize("attention", ["batch", "channel"])
def test_a_client_of_pure_noise_is_found_out(attention):
    g = torch.Generator().manual_seed(3)
    truth = torch.randn(60, 96, generator=g)
    reps = truth + 0.5 * torch.randn(8, 60, 96, generator=g)
    reps[0] = torch.randn(60, 96, generator=g)
    fused, weights = consensus.fuse(reps, ["image"] * 4 + ["text"] * 4, attention=attention)
    assert weights[0].mean() < 0.02 < 1 / 8
    assert torch.cosine_similarity(fused, truth).mean() > 0.9


def test_one_modality_uses_the_augmented_anchor_and_no_attention():
    g = torch.Generator().manual_seed(4)
    reps, views = torch.randn(3, 8, 6, generator=g), torch.randn(3, 8, 6, generator=g)
    fused, weights = consensus.fuse(reps, ["image"] * 3, augmented_KND=views, temperature=0.5)
    scores = torch.stack([consensus.contrastive_score(r, views.mean(0), 0.5) for r in reps])
    assert torch.allclose(weights, scores.softmax(0))
    assert torch.allclose(fused, (weights[..., None] * reps).sum(0), atol=1e-6)


def test_fused_lies_in_the_hull_of_what_it_mixes():
    reps = torch.randn(4, 5, 8)
    fused, _ = consensus.fuse(reps, ["image", "image", "text", "text"], attention="none")
    assert (fused <= reps.max(0).values + 1e-6).all() and (fused >= reps.min(0).values - 1e-6).all()


def test_logits_of_equal_clients_vote_as_one_and_a_constant_does_not_matter():
    logits = torch.randn(1, 12, 5)
    clients = torch.cat([logits, logits + 7.0, logits - 3.0])
    label, _, weights = consensus.fuse_logits(clients, ["image", "image", "text"])
    assert torch.equal(label, logits[0].argmax(-1))
    assert torch.allclose(weights, torch.full((3, 12), 1 / 3), atol=1e-4)


def test_a_single_sample_gives_uniform_weights():
    _, weights = consensus.fuse(torch.randn(4, 1, 8), ["image"] * 2 + ["text"] * 2)
    assert torch.allclose(weights, torch.full((4, 1), 0.25))


def test_votes_for_a_class_count_the_weights_of_those_who_named_it():
    labels, weights = torch.tensor([[0, 1], [0, 0], [2, 1]]), torch.tensor([[0.5, 1.0], [2.0, 1.0], [1.0, 0.25]])
    assert consensus.votes_for(labels, weights, torch.tensor([0, 1])).tolist() == [2.5, 1.25]


@pytest.mark.parametrize("how", [{}, {"include_self": False, "normalise": "per_modality"}, {"attention": "channel"}])
@pytest.mark.parametrize("modalities", [["image", "image", "text"], ["text"] * 3])
def test_blocks_of_samples_and_a_mask_change_nothing(monkeypatch, modalities, how):
    g = torch.Generator().manual_seed(3)
    reps, views = (torch.randn(3, 11, 24, generator=g) for _ in range(2))
    keep = torch.tensor([True, False] * 5 + [True])
    given = how | ({"augmented_KND": views[:, keep]} if len(set(modalities)) == 1 else {})
    whole = consensus.fuse(reps[:, keep], modalities, **given)
    monkeypatch.setattr(consensus, "BLOCK", 150)  # two samples of six at a time
    parts = consensus.fuse(list(reps), modalities, keep_N=keep, **given | {"augmented_KND": list(views)})
    for one, other in zip(whole, parts, strict=True):
        assert one.shape == other.shape and torch.allclose(one, other, atol=1e-5)
    assert torch.allclose(parts[1].sum(0), torch.ones(6)) and not torch.isnan(parts[0]).any()


def test_one_block_is_the_formula_bit_for_bit() -> None:
    """One block is bit for bit the formula: runs of 240 samples repeat those made before there were blocks."""
    random = torch.Generator().manual_seed(5)
    rep_ND, anchor_ND = torch.randn(40, 16, generator=random), torch.randn(40, 16, generator=random)
    sim_NN = consensus.unit(rep_ND) @ consensus.unit(anchor_ND).T / 0.1
    assert torch.equal(consensus.contrastive_score(rep_ND, anchor_ND), sim_NN.diagonal() - sim_NN.logsumexp(-1))
    weights_NN = torch.softmax(consensus.unit(rep_ND) @ consensus.unit(anchor_ND).T / 16**-0.5, -1)
    expected_ND = 0.5 * rep_ND + 0.5 * (weights_NN @ anchor_ND)
    assert torch.equal(consensus.cross_attention(rep_ND, anchor_ND), expected_ND)
