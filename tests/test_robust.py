"""Robust arithmetic by hand, and the guard that puts it between the federation and every method."""

import json

import pytest
import torch
from scipy.stats import trim_mean

from florilegium.config.privacy import DefenceSettings, PrivacySettings, Training, Votes
from florilegium.federation import robust
from florilegium.federation.federation import Client, Reply
from florilegium.federation.guard import Guard
from florilegium.protocol.payloads import Answers, Logits
from florilegium.protocol.validation import WireError

T = torch.tensor


def geometric_median(x_KND):
    """The mean [N, D] by the weights that the defence uses."""
    return (robust.median_weights(x_KND)[..., None] * x_KND).sum(0)


# -- bounded shares ------------------------------------------------------------------------------------------


def test_one_of_three_voters_is_cut_to_half():
    # 8, 1, 1: cut to t with t = 0.5 (t + 2), so t = 2
    assert robust.capped(T([[8.0], [1.0], [1.0]]), 0.5).flatten().tolist() == pytest.approx([2, 1, 1])


def test_two_of_five_are_cut_together():
    # 9, 8, 2, 1, 1 at 0.3: one cut would be t = 12 / (10/3 - 1) = 5.1 < 8; two: t = 4 / (10/3 - 2) = 3
    assert robust.capped(T([[9.0], [8], [2], [1], [1]]), 0.3).flatten().tolist() == pytest.approx([3, 3, 2, 1, 1])


def test_who_is_below_the_bound_keeps_the_weight_and_too_few_become_equal():
    even = T([[1.0, 0.0], [1.2, 3.0], [0.9, 1.0]])
    capped = robust.capped(even, 0.5)
    assert torch.equal(capped[:, 0], even[:, 0])  # the largest holds 1.2 / 3.1
    assert capped[:, 1].tolist() == pytest.approx([0, 1, 1])
    assert robust.capped(T([[5.0], [1.0]]), 0.3).flatten().tolist() == pytest.approx([1, 1])  # 2 < 1 / 0.3
    assert robust.capped(torch.zeros(3, 2), 0.4).eq(0).all()


def test_no_share_is_above_the_bound():
    weights = torch.rand(7, 200, generator=torch.Generator().manual_seed(0)) ** 4
    capped = robust.capped(weights, 0.25)
    assert (capped / capped.sum(0)).max() <= 0.25 + 1e-5 and (capped <= weights).all()


def test_a_long_vector_is_shortened_to_its_share_and_keeps_its_direction():
    x = T([[[30.0, 40.0]], [[0.0, 1.0]], [[1.0, 0.0]]])  # lengths 50, 1, 1 -> 2, 1, 1 at one half
    assert torch.allclose(robust.shortened(x, 0.5)[0], T([[1.2, 1.6]]))


# -- trimmed mean ------------------------------------------------------------------------------------------


def test_the_mean_of_trimmed_values_is_the_trimmed_mean():
    x = T([[1.0, 5.0], [2.0, 6.0], [3.0, -900.0], [100.0, 7.0]])
    out = robust.trimmed(x, 0.25)
    assert out.mean(0).tolist() == [2.5, 5.5]  # of 2, 3 and of 5, 6
    assert out[:, 0].tolist() == [2.5, 2.0, 3.0, 2.5]  # the outer two stand at it
    assert torch.equal(robust.trimmed(x, 0.2), x)  # 0.2 of four clients is none
    wild = torch.randn(9, 5, 3, generator=torch.Generator().manual_seed(1)) ** 3
    expected = torch.from_numpy(trim_mean(wild.numpy(), 0.25, axis=0))
    assert torch.allclose(robust.trimmed(wild, 0.25).mean(0), expected, atol=1e-5)


def test_equal_values_are_trimmed_by_count():
    assert robust.trimmed(T([4.0, 4.0, 4.0, 8.0]), 0.25).tolist() == [4.0] * 4


# -- geometric median ------------------------------------------------------------------------------------------


def test_geometric_medians_of_known_points():
    square = T([[0.0, 0], [2, 0], [2, 2], [0, 2]])[:, None]
    assert torch.allclose(geometric_median(square), T([[1.0, 1.0]]), atol=1e-4)
    # an equilateral triangle's is its centre: (0 + 1 + 1/2) / 3, sqrt(3) / 6
    triangle = T([[0.0, 0], [1, 0], [0.5, 0.75**0.5]])[:, None]
    assert torch.allclose(geometric_median(triangle), T([[0.5, 0.75**0.5 / 3]]), atol=1e-4)
    # the inner point of a convex hull of four is the one where the diagonals cross, however long these are
    kite = T([[-1.0, 0], [1000.0, 0], [0, -3.0], [0, 50.0]])[:, None]
    assert torch.allclose(geometric_median(kite), T([[0.0, 0.0]]), atol=0.05)


def test_on_a_line_it_is_the_median():
    line = T([[0.0], [1.0], [5.0], [6.0], [1e4]])[:, None]
    assert geometric_median(line).item() == pytest.approx(5.0, abs=0.05)


def test_recentred_points_have_the_weighted_mean_as_their_mean():
    x = T([[[0.0, 0.0]], [[4.0, 0.0]], [[100.0, 60.0]]])
    out = robust.recentred(x, T([[0.5], [0.5], [0.0]]))  # the third counts nothing: it stands at the centre (2, 0)
    assert out[:, 0].tolist() == [[-1.0, 0.0], [5.0, 0.0], [2.0, 0.0]]
    assert out.mean(0).tolist() == [[2.0, 0.0]]
    median = robust.recentred(x, robust.median_weights(x))
    assert torch.allclose(median.mean(0), geometric_median(x), atol=1e-4)
    reach = (median - geometric_median(x)).norm(dim=-1)
    assert reach.max() < 10  # an outlier at 115 is no farther than the others now


# -- reputation ------------------------------------------------------------------------------------------


def test_agreement_is_with_the_label_of_most_shares():
    labels = T([[0, 1, 2], [0, 1, 0], [1, 2, 2]])
    assert robust.agreement(labels, T([1 / 3, 1 / 3, 1 / 3]), 3).tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    # with four fifths of the shares the third client is the consensus
    assert robust.agreement(labels, T([0.1, 0.1, 0.8]), 3).tolist() == pytest.approx([1 / 3, 0, 1])


def test_shares_of_reputations():
    assert robust.shares(T([1.0, 0.5, 0.5]), 1).tolist() == [0.5, 0.25, 0.25]
    assert robust.shares(T([1.0, 0.5, 0.5]), 2).tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    assert robust.shares(T([0.0, 0.0]), 2).tolist() == [0.5, 0.5]


def test_likeness_is_the_cosine_with_the_mean_of_all():
    x = T([[[1.0, 0.0]], [[1.0, 0.0]], [[-1.0, 0.0]]])
    assert robust.likeness(x, T([1 / 3, 1 / 3, 1 / 3])).tolist() == pytest.approx([1, 1, 0])


# -- the guard -----------------------------------------------------------------------------------------------------


IMAGE = [Client(11 + k, k, "image") for k in range(3)]
TEXT = [Client(20, 3, "text")]


def reply(client, labels, vector):
    n = len(labels)
    body = Answers(torch.arange(n), T(labels), torch.ones(n), T([vector] * n), torch.zeros(n, 0))
    return Reply(client, body)


def four():
    return [
        reply(IMAGE[0], [0, 1], [1.0, 0.0]),
        reply(IMAGE[1], [0, 1], [3.0, 2.0]),
        reply(IMAGE[2], [0, 0], [2.0, 1.0]),
        reply(TEXT[0], [2, 2], [-90.0, 80.0]),
    ]


def means(replies):
    return torch.stack([x.body.representations for x in replies]).mean(0)[0].tolist()


def test_without_a_defence_replies_pass_as_they_are():
    replies = four()
    assert Guard(classes=3).cleaned(replies) is replies
    assert Guard(classes=3).votes(torch.ones(4, 2), replies).eq(1).all()


def test_a_method_that_averages_gets_the_robust_centre():
    # coordinates 1 3 2 -90 and 0 2 1 80: without the ends 1, 2 and 1, 2
    assert means(Guard(DefenceSettings(centre="trimmed"), classes=3).cleaned(four())) == [1.5, 1.5]
    by_median = Guard(DefenceSettings(centre="median"), classes=3).cleaned(four())
    stacked = torch.stack([x.body.representations[0] for x in four()])[:, None]
    assert means(by_median) == pytest.approx(geometric_median(stacked)[0].tolist(), abs=1e-3)
    apart = Guard(DefenceSettings(centre="trimmed", among="modality", trim=0.34), classes=3).cleaned(four())
    assert means(apart[:3]) == [2.0, 1.0]  # of the three image clients
    assert apart[3].body.representations[0].tolist() == [-90.0, 80.0]  # alone in its modality: nobody to compare with
    assert [x.body.labels.tolist() for x in apart] == [[0, 1], [0, 1], [0, 0], [2, 2]]


def test_class_scores_stay_within_the_wire():
    scores = [
        Reply(c, Logits(torch.arange(1), T([x])))
        for c, x in zip(IMAGE, ([9e3, 0.0], [1.0, 0.0], [0.0, 9e3]), strict=True)
    ]
    out = Guard(DefenceSettings(centre="median", reputation=True), classes=2).cleaned(scores)
    assert max(x.body.logits.abs().max().item() for x in out) <= 1e4


def test_reputation_follows_agreement_and_weighs_later_rounds():
    guard = Guard(DefenceSettings(reputation=True, momentum=0.5, sharpness=1.0), classes=3)
    first = guard.cleaned(four())  # consensus 0, 1: agreements 1, 1, 1/2, 0
    assert guard.reputation == {0: 1.0, 1: 1.0, 2: 0.75, 3: 0.5}
    assert means(first) == means(four())  # this round's weights were equal
    # shares of 3.25: 4/13, 4/13, 3/13, 2/13; votes weigh four times that
    weights = guard.votes(torch.ones(4, 1), four()).flatten().tolist()
    assert weights == pytest.approx([16 / 13, 16 / 13, 12 / 13, 8 / 13])
    second = guard.cleaned(four())
    expected = [(4 * 1 + 4 * 3 + 3 * 2 + 2 * -90) / 13, (4 * 0 + 4 * 2 + 3 * 1 + 2 * 80) / 13]
    assert means(second) == pytest.approx(expected, rel=1e-5)
    assert guard.reputation == {0: 1.0, 1: 1.0, 2: 0.625, 3: 0.25}
    twin = Guard(DefenceSettings(reputation=True), classes=3)
    twin.restore(json.loads(json.dumps(guard.state())))
    assert twin.reputation == guard.reputation and guard.metrics()["defence/reputation_3"] == 0.25


def test_votes_are_bounded_after_reputation():
    guard = Guard(DefenceSettings(bound=0.4), classes=3)
    out = guard.votes(T([[6.0], [1], [1], [1]]), four())  # t = 0.4 (t + 3): t = 2
    assert out.flatten().tolist() == pytest.approx([2, 1, 1, 1]) and guard.metrics()["defence/votes_bounded"] == 0.25


def test_a_client_reports_only_the_epsilons_that_are_its_own():
    guard = Guard(None, PrivacySettings(votes=Votes(), training=Training()), classes=3)
    guard.spent(0, {"dpsgd": 2.5})
    for name in ("gnmax", "gnmax_sample", "gaussian"):  # the server's, and of a mechanism that is off
        with pytest.raises(WireError, match=rf"privacy\[{name}\] is not what clients report"):
            guard.spent(1, {"dpsgd": 9.0, name: 0.0})
    guard.released(T([[0], [0], [1], [1]]), T([0]), T([True]))
    told = guard.metrics()
    assert told["privacy/epsilon/gnmax"] > 1
    assert told["privacy/epsilon/dpsgd"] == 2.5  # of a refused reply nothing stays
    assert "privacy/epsilon/gnmax/1" not in told


def test_gnmax_releases_labels_and_goes_on_after_a_restart():
    private = PrivacySettings(votes=Votes(threshold=0.5, threshold_noise=1e-3, noise=1e-3), seeded=True)
    guard = Guard(None, private, classes=3)
    votes = T([[0, 1], [0, 2], [0, 0], [1, 1]])
    label, keep = guard.released(votes, T([9, 9]), T([False, False]))
    assert label.tolist() == [0, 1] and keep[0]  # 3 of 4; 2 of 4 is at the threshold
    assert guard.counted.history[0] == (1e-3, 1.0, 2)
    noisy = Guard(None, PrivacySettings(votes=Votes(0.5, 5.0, 5.0)), classes=3)
    noisy.released(votes, T([9, 9]), T([False, False]))
    twin = Guard(None, noisy.privacy, classes=3)
    twin.restore(json.loads(json.dumps(noisy.state())))
    many = torch.randint(3, (4, 500), generator=torch.Generator().manual_seed(0))
    a, b = (g.released(many, many[0], many[0] > 9) for g in (noisy, twin))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])  # the same secret, the same place in its stream
    stranger = Guard(None, noisy.privacy, classes=3)
    assert not torch.equal(stranger.released(many, many[0], many[0] > 9)[0], a[0])
