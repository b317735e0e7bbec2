"""Online deep clustering: against loops over single numbers, and by what must hold after every step."""
import math

import numpy as np
import pytest
import torch
from mixsupcon.core.clusters import Clusters, dissolve_and_split, kmeans, means, nearest, second_half, starts
from mixsupcon.core.options import refused, stream
from safetensors.torch import load, save
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score
from torch import nn
from torch.nn import functional as F


def blobs(n=240, k=6, width=8, spread=.1):
    "Rows about `k` directions at right angles, and each row's direction."
    y = torch.arange(n) % k
    return torch.eye(width)[y] + spread*torch.randn(n, width, generator=stream(0, "blobs")), y


def batches(steps, n, size, width, step=0):
    "Rows, each once, and their features, which crowd more and more into one direction."
    for now in range(step, step + steps):
        gen = stream(1, "batches", now)
        crowd = torch.eye(width, dtype=torch.float64)[0]*now/40
        yield torch.randperm(n, generator=gen)[:size], crowd + torch.randn(size, width, generator=gen).double()


# ---- the same step over single numbers

def length_one(row):
    "A row divided by its length."
    norm = math.sqrt(sum(value*value for value in row))
    return [value/norm for value in row]


def product(a, b):
    "Two rows multiplied."
    return sum(p*q for p, q in zip(a, b))


class Loops:
    "The bank and its clusters as lists."
    def __init__(self, clusters, smallest):
        self.bank, self.labels = clusters.bank.tolist(), clusters.labels.tolist()
        self.centroids, self.smallest, self.steps, self.splits = clusters.centroids.tolist(), smallest, 0, 0

    def members(self, k):
        return [i for i, label in enumerate(self.labels) if label == k]

    def mean_of(self, rows):
        return [sum(self.bank[i][d] for i in rows)/len(rows) for d in range(len(self.bank[0]))]

    def highest(self, i, among):
        return max(among, key=lambda k: product(self.centroids[k], self.bank[i]))

    def update(self, rows, features):
        every = range(len(self.centroids))
        self.steps += 1
        for i, f in zip(rows.tolist(), features.tolist()):
            self.bank[i] = length_one([(old + new)/2 for old, new in zip(self.bank[i], length_one(f))])
            self.labels[i] = self.highest(i, every)
        if self.steps % 10 == 0:
            for k in every:
                if self.members(k):
                    self.centroids[k] = self.mean_of(self.members(k))
        few = [k for k in every if len(self.members(k)) < self.smallest]
        others = [k for k in every if k not in few]
        for i in [i for k in few for i in self.members(k)]:
            self.labels[i] = self.highest(i, others)
        gen = stream(0, "clusters", self.steps)
        for empty in few:
            sizes = [len(self.members(k)) for k in every]
            largest = sizes.index(max(sizes))
            rows = self.members(largest)
            halves = kmeans(torch.tensor([self.bank[i] for i in rows], dtype=torch.float64), 2, gen).tolist()
            assert {*halves} == {0, 1}
            for i, half in zip(rows, halves):
                self.labels[i] = empty if half else largest
            for k in (largest, empty):
                self.centroids[k] = self.mean_of(self.members(k))
            self.splits += 1


@pytest.mark.parametrize("k, smallest, usual", [(5, 8, 8), (8, 5, 20), (3, 1, 1)])
def test_each_step_is_that_of_loops_over_single_numbers(k, smallest, usual):
    "With n = 80 the size of 20 that is asked for becomes 80/(2·8) = 5."
    ours = Clusters(k, 4, smallest=usual).double()
    ours.fill(torch.randn(80, 4, generator=stream(0, "rows")))
    loops = Loops(ours, smallest)
    for rows, f in batches(45, 80, 16, 4):
        ours.update(rows, f)
        loops.update(rows, f)
        assert ours.labels.tolist() == loops.labels
        assert torch.allclose(ours.bank, torch.tensor(loops.bank).double(), atol=1e-12)
        assert torch.allclose(ours.centroids, torch.tensor(loops.centroids).double(), atol=1e-12)
    assert loops.splits > 5 or smallest == 1


# ---- what holds after every step

@pytest.mark.parametrize("k", [2, 7, 40])
def test_no_cluster_is_ever_empty_and_rows_have_length_one(k):
    clusters = Clusters(k, 4)
    clusters.fill(torch.randn(80, 4, generator=stream(0, "rows")))
    for rows, f in batches(60, 80, 32, 4):
        clusters.update(rows, f)
        assert clusters.labels.bincount(minlength=k).min() > 0
        assert torch.allclose(clusters.bank.norm(dim=1), torch.ones(80), atol=1e-6)
    assert clusters.steps == 60


@pytest.mark.parametrize("momentum", [0., .5, .9])
def test_the_bank_moves_towards_the_features_and_other_rows_stay(momentum):
    clusters, (x, _) = Clusters(6, 8, momentum=momentum).double(), blobs()
    clusters.fill(x)
    before, rows = clusters.bank.clone(), torch.arange(3, 30)
    f = torch.randn(27, 8, generator=stream(0, "new")).double().requires_grad_()
    clusters.update(rows, f)
    moved = momentum*before[rows] + (1 - momentum)*f.detach()/f.detach().norm(dim=1, keepdim=True)
    assert torch.allclose(clusters.bank[rows], moved/moved.norm(dim=1, keepdim=True), atol=1e-12)
    others = torch.ones(240, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(clusters.bank[others], before[others]) and not clusters.bank.requires_grad


def test_labels_of_a_batch_are_the_highest_centroids_and_those_of_other_images_stay():
    clusters, (x, _) = Clusters(6, 8, smallest=1), blobs()
    clusters.fill(x)
    for rows, f in batches(9, 240, 40, 8):
        before = clusters.labels.clone()
        clusters.update(rows, f)
        batch = torch.zeros(240, dtype=torch.bool).index_fill(0, rows, True)
        assert torch.equal(clusters.labels[rows], (clusters.bank[rows] @ clusters.centroids.T).argmax(1))
        assert torch.equal(clusters.labels[~batch], before[~batch])


def test_centroids_are_means_of_members_at_every_tenth_step_and_stay_between():
    clusters, (x, _) = Clusters(6, 8, smallest=1).double(), blobs()
    clusters.fill(x)
    for step, (rows, f) in enumerate(batches(30, 240, 40, 8), 1):
        before = clusters.centroids.clone()
        clusters.update(rows, f)
        if step % 10:
            assert torch.equal(clusters.centroids, before)
        else:
            own = torch.stack([clusters.bank[clusters.labels == k].mean(0) for k in range(6)])
            assert torch.allclose(clusters.centroids, own, atol=1e-12) and not torch.allclose(own, before, atol=1e-3)
            assert (own.norm(dim=1) < .999).all()   # not normalised


# ---- small clusters, and the largest

def test_members_of_a_small_cluster_go_to_the_next_one_and_the_largest_is_split():
    x, y = blobs(240, 4, 8)
    y[y == 1] = 0   # two directions under one label: the largest
    few = torch.tensor([2, 3, 6])   # three rows of directions 2, 3 and 2
    y[few] = 1
    x, labels = F.normalize(x, dim=1), y.clone()
    centroids = means(x, labels, torch.zeros(4, 8))
    dissolve_and_split(x, labels, centroids, 4, stream(0, "split"))
    assert labels[few].tolist() == [2, 3, 2]
    both = torch.arange(240) % 4 < 2
    assert adjusted_rand_score(torch.arange(240)[both] % 4, labels[both]) == 1 and {*labels[both].tolist()} == {0, 1}
    assert torch.equal(labels[~both], (torch.arange(240) % 4)[~both])
    for k in (0, 1):
        assert torch.allclose(centroids[k], x[labels == k].mean(0), atol=1e-6)


@pytest.mark.parametrize("members, dissolved", [(4, True), (5, False)])
def test_the_smallest_size_is_at_most_half_of_the_mean_size(members, dissolved):
    "60 images in 6 clusters: 60/(2·6) = 5, whatever larger number is asked for."
    clusters, (x, _) = Clusters(6, 8, smallest=20), blobs(60)
    clusters.fill(x)
    own = (clusters.labels == 0).nonzero()[:, 0]
    clusters.labels[own[members:]] = 1
    clusters.update(torch.tensor([own[0]]), clusters.bank[own[:1]])
    assert clusters.labels.bincount()[0] != members if dissolved else clusters.labels.bincount()[0] == members


def test_images_that_are_all_alike_are_spread_at_random():
    "2-means cannot part them; each cluster still has members, before and after steps."
    alike = F.normalize(torch.ones(64, 3), dim=1)
    assert second_half(alike[:9], stream(0, "half")).sum() == 4
    clusters = Clusters(8, 3)
    clusters.fill(alike)
    assert sorted(clusters.labels.bincount().tolist()) == [8]*8   # halves of halves
    for _ in range(12):
        clusters.update(torch.arange(64), alike)
        assert clusters.labels.bincount(minlength=8).min() > 0 and clusters.centroids.isfinite().all()


# ---- k-means

def test_separate_blobs_are_the_clusters():
    x, y = blobs(600, 12, 16)
    for seed in range(5):
        clusters = Clusters(12, 16, seed=seed)
        clusters.fill(x)
        assert adjusted_rand_score(y, clusters.labels) > .99
        for rows, _ in batches(25, 600, 100, 16):
            clusters.update(rows, x[rows])
        assert adjusted_rand_score(y, clusters.labels) > .99


def test_k_means_ends_where_nothing_moves_and_about_as_low_as_scikit_learns():
    x = F.normalize(torch.tensor(load_digits().data), dim=1)
    for k in (2, 20):
        labels = [kmeans(x, k, stream(seed, "k-means"), 300) for seed in range(4)]
        centroids = [means(x, each, x[:k]) for each in labels]
        assert all(torch.equal(nearest(x, c), each) for c, each in zip(centroids, labels))
        ours = [(x - c[each]).square().sum().item() for c, each in zip(centroids, labels)]
        theirs = [KMeans(k, n_init=1, random_state=seed).fit(x.numpy()).inertia_ for seed in range(4)]
        assert abs(np.mean(ours)/np.mean(theirs) - 1) < .03


def test_starts_lie_apart_and_are_drawn_from_the_generator_alone():
    x, _ = blobs(240, 12, 16, spread=.02)
    before = torch.get_rng_state()
    picked = starts(x, 12, stream(3, "starts"))
    assert {*torch.cdist(picked, x).argmin(1).remainder(12).tolist()} == {*range(12)}   # one of each blob
    assert torch.equal(picked, starts(x, 12, stream(3, "starts"))) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(picked, starts(x, 12, stream(4, "starts")))


def test_a_label_without_rows_keeps_its_centroid():
    x, y = blobs()
    old = torch.randn(8, 8, generator=stream(0, "centroids"))
    new = means(x, y, old)
    assert torch.equal(new[6:], old[6:]) and torch.allclose(new[3], x[y == 3].mean(0), atol=1e-6)


def test_slices_change_nothing(monkeypatch):
    x, _ = blobs()
    centroids = F.normalize(torch.randn(9, 8, generator=stream(0, "centroids")), dim=1)
    labels = nearest(x, centroids)
    whole = means(x, labels, centroids)
    monkeypatch.setattr("mixsupcon.core.clusters.SLICE", 7)
    assert torch.equal(nearest(x, centroids), labels)
    assert torch.allclose(means(x, labels, centroids), whole, atol=1e-6)


# ---- weights, state, refusals

def test_weights_are_one_over_the_root_of_the_members_and_one_on_average():
    clusters = Clusters(3, 4)
    clusters.fill(torch.randn(90, 4, generator=stream(0, "rows")))
    clusters.labels = torch.tensor([0]*64 + [1]*16 + [2]*10)
    w = clusters.weights()
    assert torch.isclose(w.mean(), torch.tensor(1.)) and torch.isclose(w[1]/w[0], torch.tensor(2.))
    assert torch.isclose(w[2]/w[0], torch.tensor(64/10).sqrt())


def test_a_fresh_object_goes_on_from_a_stored_state_to_the_bit():
    "Also inside another module, and through a file; clusters are split on the way."
    one, two = (nn.ModuleDict(dict(clusters=Clusters(20, 8))) for _ in range(2))
    one["clusters"].fill(blobs()[0])
    for rows, f in batches(13, 240, 60, 8):
        one["clusters"].update(rows, f)
    result = two.load_state_dict(load(save(one.state_dict())))
    assert not result.missing_keys and not result.unexpected_keys
    splits = 0
    for rows, f in batches(30, 240, 60, 8, step=13):
        before = one["clusters"].labels.clone()
        outside = torch.ones(240, dtype=torch.bool).index_fill(0, rows, False)
        one["clusters"].update(rows, f)
        two["clusters"].update(rows, f)
        splits += (one["clusters"].labels != before)[outside].any().item()
        assert all(torch.equal(v, two.state_dict()[name]) for name, v in one.state_dict().items())
    assert splits > 3
    assert {*one.state_dict()} == {f"clusters.{name}" for name in ("bank", "labels", "centroids", "steps")}


def test_a_state_of_other_clusters_is_refused():
    clusters = Clusters(6, 8)
    clusters.fill(blobs()[0])
    with pytest.raises(RuntimeError, match="centroids"):
        Clusters(5, 8).load_state_dict(clusters.state_dict())
    with pytest.raises(RuntimeError, match="Missing key.*bank"):
        Clusters(6, 8).load_state_dict({k: v for k, v in clusters.state_dict().items() if k != "bank"})


def test_another_seed_draws_otherwise_and_filling_again_starts_anew():
    x = torch.randn(200, 6, generator=stream(0, "rows"))
    one, other, again = Clusters(9, 6), Clusters(9, 6, seed=1), Clusters(9, 6)
    for clusters in (one, other, again):
        clusters.fill(x)
    first = one.labels.clone()
    assert not torch.equal(first, other.labels) and torch.equal(first, again.labels)
    one.update(torch.arange(50), x[:50].flip(1))
    one.fill(x)
    assert torch.equal(one.labels, first) and one.steps == 0


def test_what_cannot_be_clustered_is_refused_in_a_sentence():
    x = torch.randn(5, 4, generator=stream(0, "rows"))
    clusters = Clusters(5, 4)
    clusters.fill(x)
    assert sorted(clusters.labels.tolist()) == [0, 1, 2, 3, 4]   # as many clusters as images
    assert "6 clusters of 5 images: pass clusters 5 or fewer" in refused(Clusters(6, 4).fill, x)
    assert "(n, 3), not (5, 4)" in refused(Clusters(5, 3).fill, x)
    assert "not finite" in refused(Clusters(5, 4).fill, x.log())
    assert "fill the bank" in refused(Clusters(5, 4).update, torch.arange(2), x[:2])
