"""Naive float64 loop references for AMix: learned masks, losses of the block, clusters, PuzzleMix, Co-Mixup, saliency.

Only `math`, `itertools` and `numpy` (as a container) are used; loops over images, pixels and rows, speed does not
matter. Features and images are (N, C, H, W), masks (N, 1, H, W): how much of each pixel is the first image's. `lam` is
the share of the first image, one number a batch or one an image. Embeddings come in raw and are brought to unit length
inside. Gradients are central differences: `gradient`.
"""

import itertools
import math

import numpy as np
from oracle import argmax, cutmix_box, dot, log_sum_exp, rows, unit_rows

# ---------------------------------------------------------------- small helpers


def array(x):
    """An array-like as a float64 array of its own."""
    return np.array(np.asarray(x), dtype=np.float64)


def spread(lam, n):
    """The shares of n images from one number, a list of one, or a list of n."""
    lam = array(lam).reshape(-1).tolist()
    return lam * n if len(lam) == 1 else lam


def gradient(function, x, step=1e-4):
    """Derivatives of a scalar function of one array by central differences of fourth order."""
    x = array(x)
    slopes = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        values = []
        for shift in (-2, -1, 1, 2):
            moved = x.copy()
            moved[place] += shift * step
            values.append(float(function(moved)))
        slopes[place] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    return slopes


def sigmoid(value):
    """1 / (1 + exp(-value)), without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))


def mean(values):
    """The mean of a non-empty list."""
    return sum(values) / len(values)


def blend(xa, xb, mask):
    """mask xa + (1 - mask) xb, pixel by pixel; the mask has one channel."""
    xa, xb, mask = array(xa), array(xb), array(mask)
    mixed = np.zeros(xa.shape)
    for i, c, r, s in np.ndindex(xa.shape):
        share = mask[i, 0, r, s]
        mixed[i, c, r, s] = share * xa[i, c, r, s] + (1 - share) * xb[i, c, r, s]
    return mixed


# ---------------------------------------------------------------- parts of the Mix Block


def lam_curve(lam, k):
    """f_k(lam) = (4/3 lam^3 - 2 lam^2 + (k + 1) lam) / (k + 1 - 2/3); lam itself if k is 0."""
    if k == 0:
        return lam
    return (4 / 3 * lam**3 - 2 * lam**2 + (k + 1) * lam) / (k + 1 - 2 / 3)


def with_lam(z, lam, how, gamma=0.0):
    """One image's features (C, h, w) that know lam: a constant channel more ('concat'), or scaled by 1 + gamma lam."""
    z = array(z)
    channels, height, width = z.shape
    result = np.zeros((channels + (how == "concat"), height, width))
    for c, r, s in np.ndindex(result.shape):
        if how == "concat":
            result[c, r, s] = z[c, r, s] if c < channels else lam
        else:
            result[c, r, s] = (1 + gamma * lam) * z[c, r, s]
    return result


def conv1x1(x, weight, bias=None):
    """A 1x1 convolution of (N, C, h, w) with weight (D, C) and bias (D,)."""
    x, weight = array(x), rows(weight)
    n, _, height, width = x.shape
    result = np.zeros((n, len(weight), height, width))
    for i in range(n):
        for r in range(height):
            for s in range(width):
                values = x[i, :, r, s].tolist()
                for d in range(len(weight)):
                    result[i, d, r, s] = dot(weight[d], values) + (0.0 if bias is None else float(bias[d]))
    return result


def batch_norm(x, weight, bias, running_mean, running_var, training, eps=1e-5, momentum=0.1):
    """Batch norm of (N, C, h, w): the output, and the running mean and variance afterwards."""
    x = array(x)
    n, channels, height, width = x.shape
    result = np.zeros(x.shape)
    new_mean, new_var = array(running_mean), array(running_var)
    for c in range(channels):
        centre, variance = float(running_mean[c]), float(running_var[c])
        if training:
            values = [x[i, c, r, s] for i in range(n) for r in range(height) for s in range(width)]
            count = len(values)
            centre = mean(values)
            variance = mean([(value - centre) ** 2 for value in values])
            new_mean[c] = (1 - momentum) * running_mean[c] + momentum * centre
            new_var[c] = (1 - momentum) * running_var[c] + momentum * variance * count / (count - 1)
        for i in range(n):
            for r in range(height):
                for s in range(width):
                    unit = (x[i, c, r, s] - centre) / math.sqrt(variance + eps)
                    result[i, c, r, s] = unit * float(weight[c]) + float(bias[c])
    return result, new_mean, new_var


def attention(query, key):
    """Weights (h w, h w) of one image: softmax over the places of the key of query . key / sqrt(channels)."""
    query, key = array(query), array(key)
    channels, height, width = query.shape
    places = [(r, s) for r in range(height) for s in range(width)]
    keys = [key[:, r, s].tolist() for r, s in places]
    weights = []
    for r, s in places:
        scores = [dot(query[:, r, s].tolist(), one) / math.sqrt(channels) for one in keys]
        bottom = log_sum_exp(scores)
        weights.append([math.exp(score - bottom) for score in scores])
    return weights


def attended(weights, content):
    """The content (h, w) of one image summed with the weights of each place."""
    content = array(content)
    height, width = content.shape
    result = np.zeros((height, width))
    for r in range(height):
        for s in range(width):
            row = weights[r * width + s]
            result[r, s] = sum(row[a * width + b] * content[a, b] for a in range(height) for b in range(width))
    return result


def nearest(x, size):
    """One map (h, w) up-sampled by nearest neighbour: source floor(i h / H)."""
    x = array(x)
    height, width = x.shape
    result = np.zeros(size)
    for r, s in np.ndindex(result.shape):
        result[r, s] = x[r * height // size[0], s * width // size[1]]
    return result


def source_of(place, small, large):
    """The two sources and the weight of the second, in bilinear up-sampling with align_corners=False."""
    centre = max((place + 0.5) * small / large - 0.5, 0.0)
    first = min(int(centre), small - 1)
    return first, min(first + 1, small - 1), centre - first


def bilinear(x, size):
    """One map (h, w) up-sampled bilinearly, align_corners=False."""
    x = array(x)
    height, width = x.shape
    result = np.zeros(size)
    for r, s in np.ndindex(result.shape):
        top, bottom, down = source_of(r, height, size[0])
        left, right, along = source_of(s, width, size[1])
        upper = (1 - along) * x[top, left] + along * x[top, right]
        lower = (1 - along) * x[bottom, left] + along * x[bottom, right]
        result[r, s] = (1 - down) * upper + down * lower
    return result


def content_map(z, weights, content, training):
    """The content (N, h, w) of encoded features: one 1x1 convolution, or two with batch norm and ReLU in between."""
    if content == "linear":
        return conv1x1(z, weights["content"], weights.get("content_bias"))[:, 0]
    hidden = conv1x1(z, weights["content"], weights.get("content_bias"))
    norm = [weights[f"norm_{name}"] for name in ("weight", "bias", "mean", "var")]
    hidden, _, _ = batch_norm(hidden, *norm, training)
    for place in np.ndindex(hidden.shape):
        hidden[place] = max(hidden[place], 0.0)
    return conv1x1(hidden, weights["out"], weights.get("out_bias"))[:, 0]


def mix_block(ha, hb, lam, size, weights, lam_how="learned", curve=0.0, content="two layers", attend="self",
              upsampling="bilinear", sigmoid_where="after", training=False):
    """The mask (N, 1, H, W) of the first images; convolutions, norm and 'gamma' by name; dropout is left out.

    Names in `weights`: query, key, content, out, each with an optional NAME_bias; norm_weight, norm_bias, norm_mean,
    norm_var; gamma. The same array as query and key is one shared convolution.
    """
    n = len(ha)
    lam = spread(lam, n)
    gamma = 1.0 if lam_how == "fixed" else float(weights.get("gamma", 0.0))
    first, second = [], []
    for i in range(n):
        own = lam_curve(lam[i], curve)
        first.append(with_lam(ha[i], own, lam_how, gamma))
        second.append(with_lam(hb[i], 1 - own, lam_how, gamma))

    if attend == "self":
        asking = [np.concatenate([a, b]) for a, b in zip(first, second, strict=True)]
        asked = asking
    else:
        asking, asked = first, second
    query = conv1x1(asking, weights["query"], weights.get("query_bias"))
    key = conv1x1(asked, weights["key"], weights.get("key_bias"))
    value = content_map(first, weights, content, training)

    enlarge = nearest if upsampling == "nearest" else bilinear
    mask = np.zeros((n, 1, *size))
    for i in range(n):
        score = attended(attention(query[i], key[i]), value[i])
        if sigmoid_where == "before":
            for place in np.ndindex(score.shape):
                score[place] = sigmoid(score[place])
        score = enlarge(score, size)
        if sigmoid_where == "after":
            for place in np.ndindex(score.shape):
                score[place] = sigmoid(score[place])
        mask[i, 0] = score
    return mask


# ---------------------------------------------------------------- laws of the mask


def pixels(image):
    """The values of one mask as a list."""
    return array(image).reshape(-1).tolist()


def mask_loss(mask, lam, slack=0.1, variance=2.0, mean_of="image"):
    """mean max(|lam - mu| - slack, 0) - variance mean (mu - s)^2, mu the mean of each mask or of all masks."""
    n = len(mask)
    lam = spread(lam, n)
    everything = [value for i in range(n) for value in pixels(mask[i])]
    off, scatter = [], []
    for i in range(n):
        values = pixels(mask[i])
        mu = mean(values) if mean_of == "image" else mean(everything)
        off.append(max(abs(lam[i] - mu) - slack, 0.0))
        scatter.append(mean([(mu - value) ** 2 for value in values]))
    return mean(off) - variance * mean(scatter)


def adjusted(mask, lam, margin=0.0):
    """Masks whose mean is lam: scaled down if the mean is above lam + margin, the complement if below lam - margin."""
    mask = array(mask)
    lam = spread(lam, len(mask))
    result = np.zeros(mask.shape)
    for i in range(len(mask)):
        mu = mean(pixels(mask[i]))
        for place in np.ndindex(mask[i].shape):
            value = mask[i][place]
            if mu > lam[i] + margin:
                value = value * lam[i] / mu
            elif mu < lam[i] - margin:
                value = 1 - (1 - value) * (1 - lam[i]) / (1 - mu)
            result[i][place] = value
    return result


def constant_near_ends(mask, lam, margin=0.08):
    """Masks that are lam everywhere where lam <= margin or lam >= 1 - margin."""
    mask = array(mask)
    lam = spread(lam, len(mask))
    for i in range(len(mask)):
        if lam[i] <= margin or lam[i] >= 1 - margin:
            for place in np.ndindex(mask[i].shape):
                mask[i][place] = lam[i]
    return mask


# ---------------------------------------------------------------- losses of a mixture


def cross_entropy(logits, column):
    """-log softmax(logits)[column]."""
    return log_sum_exp(logits) - logits[column]


def shared(lam, own, partner):
    """The mean over the images of lam own + (1 - lam) partner."""
    lam = spread(lam, len(own))
    return mean([lam[i] * own[i] + (1 - lam[i]) * partner[i] for i in range(len(own))])


def ce(logits, y, y_partner, lam, weights=None):
    """Cross-entropy of the mixture with both labels; with weights, each term is multiplied by its class's weight."""
    logits = rows(logits)
    own, partner = [], []
    for i in range(len(logits)):
        for terms, label in ((own, int(y[i])), (partner, int(y_partner[i]))):
            weight = 1.0 if weights is None else float(weights[label])
            terms.append(weight * cross_entropy(logits[i], label))
    return shared(lam, own, partner)


def pbce(logits, y, y_partner, lam):
    """Cross-entropy of the softmax over the logits of the two classes alone; one class for both costs nothing."""
    logits = rows(logits)
    own, partner = [], []
    for i in range(len(logits)):
        first, second = logits[i][int(y[i])], logits[i][int(y_partner[i])]
        same = int(y[i]) == int(y_partner[i])
        own.append(0.0 if same else cross_entropy([first, second], 0))
        partner.append(0.0 if same else cross_entropy([second, first], 0))
    return shared(lam, own, partner)


def bce(z, k_own, k_partner, lam, tau):
    """Two-way softmax of the mixture's similarities to both keys, at temperature tau."""
    z, k_own, k_partner = unit_rows(z), unit_rows(k_own), unit_rows(k_partner)
    own, partner = [], []
    for i in range(len(z)):
        first, second = dot(z[i], k_own[i]) / tau, dot(z[i], k_partner[i]) / tau
        own.append(cross_entropy([first, second], 0))
        partner.append(cross_entropy([second, first], 0))
    return shared(lam, own, partner)


def nce(anchor, positive, negatives, tau):
    """-log of the positive's part in the softmax over itself and the negatives."""
    return cross_entropy([dot(anchor, key) / tau for key in [positive, *negatives]], 0)


def infonce(z, k_own, k_partner, lam, tau, queue):
    """Each of the two keys alone with the queue, (1+K)-way; shares lam and 1 - lam."""
    z, k_own, k_partner, queue = unit_rows(z), unit_rows(k_own), unit_rows(k_partner), unit_rows(queue)
    own = [nce(z[i], k_own[i], queue, tau) for i in range(len(z))]
    partner = [nce(z[i], k_partner[i], queue, tau) for i in range(len(z))]
    return shared(lam, own, partner)


def infonce_labels(z, k_own, k_partner, lam, tau, queue, y, y_partner, y_queue):
    """As `infonce`; rows of the queue that carry the positive's label are left out."""
    z, k_own, k_partner, queue = unit_rows(z), unit_rows(k_own), unit_rows(k_partner), unit_rows(queue)
    own, partner = [], []
    for i in range(len(z)):
        for terms, positive, label in ((own, k_own[i], y[i]), (partner, k_partner[i], y_partner[i])):
            negatives = [row for row, other in zip(queue, y_queue, strict=True) if int(other) != int(label)]
            terms.append(nce(z[i], positive, negatives, tau))
    return shared(lam, own, partner)


def infonce_batch(z, keys, p, lam, tau, keys_partner=None, y=None):
    """Without a queue: the negatives are the batch's other keys; with labels, without those of the positive's label."""
    z, keys = unit_rows(z), unit_rows(keys)
    others = keys if keys_partner is None else unit_rows(keys_partner)
    n = len(z)
    own, partner = [], []
    for i in range(n):
        for terms, pool, at in ((own, keys, i), (partner, others, int(p[i]))):
            negatives = []
            for j in range(n):
                if j != at and (y is None or int(y[j]) != int(y[at])):
                    negatives.append(pool[j])
            terms.append(nce(z[i], pool[at], negatives, tau))
    return shared(lam, own, partner)


# ---------------------------------------------------------------- MoCo with mixtures


def moco(q, k, queue, tau):
    """MoCo's own loss: the mean of -log softmax of q_i . k_i among itself and the queue."""
    q, k, queue = unit_rows(q), unit_rows(k), unit_rows(queue)
    return mean([nce(q[i], k[i], queue, tau) for i in range(len(q))])


def mixed_views(v1, v2, p, mask, cross_view=True):
    """Own part from view q, the partner's from view k; from view q as well without the cross-view pipeline."""
    source = v2 if cross_view else v1
    return blend(v1, [source[int(j)] for j in p], mask)


def moco_positives(k1, k2, p, cross_view=True):
    """Keys of both parts: own from view k and partner's from view q (cross-view), or both from view q.

    k1 and k2 are the momentum encoder's embeddings of views q and k.
    """
    own = k2 if cross_view else k1
    return [list(row) for row in own], [list(k1[int(j)]) for j in p]


def moco_mixed(z, k1, k2, p, lam, queue, tau, cross_view=True):
    """The mixed term of MoCo: both parts' keys, each alone with the queue."""
    own, partner = moco_positives(k1, k2, p, cross_view)
    return infonce(z, own, partner, lam, tau, queue)


def moco_mix_step(query, slow, v1, v2, p, mask, lam, queue, tau, cross_view=True, with_base=True):
    """MoCo's loss plus the mixed term; `query` and `slow` turn images into embeddings."""
    k1, k2 = slow(v1), slow(v2)
    total = moco(query(v1), k2, queue, tau) if with_base else 0.0
    z = query(mixed_views(v1, v2, p, mask, cross_view))
    return total + moco_mixed(z, k1, k2, p, lam, queue, tau, cross_view)


# ---------------------------------------------------------------- whole steps of AutoMix and AMix


def supervised_step(clean, mixed, slow_mixed, y, p, p_block, lam, lam_block, mask, mask_weight=0.1, slack=0.1,
                    variance=2.0, mean_of="image"):
    """L_q (clean and mixed cross-entropy), L_k of the block's own mixtures, its mask loss, and their plain sum."""
    y = [int(label) for label in y]
    one_hot = mean([cross_entropy(row, label) for row, label in zip(rows(clean), y, strict=True)])
    loss_q = one_hot + ce(mixed, y, [y[int(j)] for j in p], lam)
    loss_k = ce(slow_mixed, y, [y[int(j)] for j in p_block], lam_block)
    loss_mask = mask_weight * mask_loss(mask, lam_block, slack, variance, mean_of)
    return loss_q, loss_k, loss_mask, loss_q + loss_k + loss_mask


def amix_step(base, mixed, block, mask_term):
    """L_moco + L_mix + L_block + the weighted mask loss: a plain sum."""
    return base + mixed + block + mask_term


# ---------------------------------------------------------------- online deep clustering


def nearest_centroid(feature, centroids, allowed=None):
    """The cluster with the largest centroid . feature, the first if several are equal."""
    allowed = list(range(len(centroids))) if allowed is None else list(allowed)
    return allowed[argmax([dot(list(centroids[k]), list(feature)) for k in allowed])]


def cluster_sizes(labels, k):
    """How many rows each of the k clusters has."""
    return [sum(1 for label in labels if int(label) == cluster) for cluster in range(k)]


def cluster_means(bank, labels, centroids):
    """The mean of each cluster's rows, not normalised; a cluster without rows stays where it was."""
    bank, result = rows(bank), rows(centroids)
    for k in range(len(result)):
        members = [row for row, label in zip(bank, labels, strict=True) if int(label) == k]
        if members:
            result[k] = [mean([row[d] for row in members]) for d in range(len(result[k]))]
    return result


def odc_rows(bank, labels, centroids, chosen, features, momentum=0.5):
    """Bank and labels after a batch: rows <- normalize((1-m) row + m feature), label = argmax centroid . row."""
    bank, labels = rows(bank), [int(label) for label in labels]
    for row, feature in zip(chosen, unit_rows(features), strict=True):
        row = int(row)
        moved = [(1 - momentum) * old + momentum * new for old, new in zip(bank[row], feature, strict=True)]
        bank[row] = unit_rows([moved])[0]
        labels[row] = nearest_centroid(bank[row], centroids)
    return bank, labels


def odc_dissolve(bank, labels, centroids, smallest):
    """Labels after rows of clusters with fewer than `smallest` rows went to the nearest other; and those clusters."""
    labels = [int(label) for label in labels]
    sizes = cluster_sizes(labels, len(centroids))
    small = [k for k in range(len(centroids)) if sizes[k] < smallest]
    large = [k for k in range(len(centroids)) if sizes[k] >= smallest]
    for i in range(len(labels)):
        if labels[i] in small and large:
            labels[i] = nearest_centroid(bank[i], centroids, large)
    return labels, small


def odc_split_faults(before, after, empty, k):
    """What is wrong with a split of the largest clusters into the empty ones, as a list of sentences.

    Any way of halving is right: each empty cluster, in order, takes some and not all rows of the cluster that is then
    the largest, and no other row moves. As the order among equals is free, rows are followed back.
    """
    faults = []
    before, after = [int(label) for label in before], [int(label) for label in after]
    sizes = cluster_sizes(after, k)
    if min(sizes) < 1:
        faults.append("a cluster has no rows")
    for i in range(len(before)):
        if after[i] != before[i] and after[i] not in empty:
            faults.append(f"row {i} moved into {after[i]}, which was not empty")
    sources = []
    for e in empty:
        sources.append({before[i] for i in range(len(after)) if after[i] == e})
    for e, origin in zip(empty, sources, strict=True):
        if len(origin) != 1:
            faults.append(f"cluster {e} took rows of {len(origin)} clusters")
    if faults:
        return faults
    # a cluster may be split only while it is the largest: no cluster left whole is larger than what was split
    first = cluster_sizes(before, k)
    split = {source for origin in sources for source in origin}
    whole = [first[c] for c in range(k) if c not in split and c not in empty]
    for source in split:
        if whole and first[source] < max(whole):
            faults.append(f"cluster {source} was split though a larger one was not")
    return faults


def odc_weights(labels, k):
    """count^-1/2 of each cluster, divided by their mean."""
    roots = [1 / math.sqrt(size) for size in cluster_sizes(labels, k)]
    return [root / mean(roots) for root in roots]


def odc_step(bank, labels, centroids, chosen, features, step, momentum=0.5, every=10, smallest=20):
    """One step up to the split: bank, labels, centroids, and the clusters to be refilled; steps count from 1."""
    bank, labels = odc_rows(bank, labels, centroids, chosen, features, momentum)
    if step % every == 0:
        centroids = cluster_means(bank, labels, centroids)
    labels, empty = odc_dissolve(bank, labels, centroids, smallest)
    return bank, labels, rows(centroids), empty


# ---------------------------------------------------------------- PuzzleMix


def block_means(x, side):
    """The mean of each side x side square of a map (H, W)."""
    x = array(x)
    result = np.zeros((x.shape[0] // side, x.shape[1] // side))
    for r, s in np.ndindex(result.shape):
        total = 0.0
        for a in range(side):
            for b in range(side):
                total += x[r * side + a, s * side + b]
        result[r, s] = total / side**2
    return result


def unit_sum(x):
    """A map divided by its sum; equal values if the sum is 0."""
    x = array(x)
    total = sum(pixels(x))
    for place in np.ndindex(x.shape):
        x[place] = x[place] / total if total > 0 else 1 / x.size
    return x


def puzzle_unary(saliency, blocks):
    """Saliency (H, W) pooled to blocks x blocks, with sum 1."""
    return unit_sum(block_means(saliency, len(saliency) // blocks))


def puzzle_differences(first, second, blocks, neighbourhood=2):
    """Mean absolute difference at each border of blocks: the upper or left block of `first`, the next of `second`.

    Images (C, H, W) are pooled first; the answer is down (b-1, b) and right (b, b-1).
    """
    first, second = array(first), array(second)
    side = first.shape[1] // blocks
    size = min(neighbourhood, side)
    cells = side // size  # pooled cells along a block's side
    one = [block_means(channel, size) for channel in first]
    two = [block_means(channel, size) for channel in second]
    down, right = np.zeros((blocks - 1, blocks)), np.zeros((blocks, blocks - 1))
    for r, s in np.ndindex(down.shape):
        edge = (r + 1) * cells
        steps = [abs(a[edge - 1, s * cells + t] - b[edge, s * cells + t])
                 for a, b in zip(one, two, strict=True) for t in range(cells)]
        down[r, s] = mean(steps)
    for r, s in np.ndindex(right.shape):
        edge = (s + 1) * cells
        steps = [abs(a[r * cells + t, edge - 1] - b[r * cells + t, edge])
                 for a, b in zip(one, two, strict=True) for t in range(cells)]
        right[r, s] = mean(steps)
    return down, right


def puzzle_prior(lam, n_labels, eps=1e-8):
    """-log of the binomial in lam of each label; label 0 is all of one's own image."""
    trials = n_labels - 1
    return [-math.log(math.comb(trials, k) * lam ** (trials - k) * (1 - lam) ** k + eps) for k in range(n_labels)]


def puzzle_smoothness(xa, xb, blocks, beta=1.2, gamma=0.5):
    """The four scaled difference terms: [source of the first block][source of the next], 0 own and 1 partner."""
    scale = beta / (16 * blocks) * gamma
    images = xa, xb
    terms = {}
    for s in (0, 1):
        for t in (0, 1):
            down, right = puzzle_differences(images[s], images[t], blocks)
            terms[s, t] = scale * down, scale * right
    return terms


def neighbours(blocks):
    """Pairs of neighbouring blocks: (direction, place in that direction's table, first block, next block)."""
    pairs = []
    for r in range(blocks):
        for s in range(blocks):
            if r + 1 < blocks:
                pairs.append((0, (r, s), (r, s), (r + 1, s)))
            if s + 1 < blocks:
                pairs.append((1, (r, s), (r, s), (r, s + 1)))
    return pairs


def puzzle_terms(xa, xb, sa, sb, lam, blocks, n_labels=3, beta=1.2, gamma=0.5, eta=0.2):
    """Costs (b, b, n) of each label, and the weights of the edges down and right.

    The smoothness of two blocks is split so that for whole labels its sum is the original, up to a constant: each
    block's label carries half of the two terms that share it, and the rest is paid where labels differ.
    """
    ua, ub = puzzle_unary(sa, blocks), puzzle_unary(sb, blocks)
    terms = puzzle_smoothness(xa, xb, blocks, beta, gamma)
    cost_own, cost_partner = ub.copy(), ua.copy()  # to take one's own block gives up the partner's saliency
    edges = np.zeros((blocks - 1, blocks)), np.zeros((blocks, blocks - 1))
    for direction, place, first, following in neighbours(blocks):
        w = {pair: terms[pair][direction][place] for pair in terms}
        cost_own[first] += (w[0, 0] + w[0, 1]) / 2
        cost_partner[first] += (w[1, 1] + w[1, 0]) / 2
        cost_own[following] += (w[0, 0] + w[1, 0]) / 2
        cost_partner[following] += (w[1, 1] + w[0, 1]) / 2
        edges[direction][place] = (w[1, 0] + w[0, 1] - w[1, 1] - w[0, 0]) / 2 + beta / (16 * blocks)
    prior = [eta * value / blocks**2 for value in puzzle_prior(lam, n_labels)]
    unary = np.zeros((blocks, blocks, n_labels))
    for r, s, label in np.ndindex(unary.shape):
        level = label / (n_labels - 1)
        unary[r, s, label] = (1 - level) * cost_own[r, s] + level * cost_partner[r, s] + prior[label]
    return unary, *edges


def puzzle_energy(labels, unary, down, right):
    """Costs of the labels plus, for each edge, its weight times ((l - l') / (n - 1))^2."""
    unary = array(unary)
    blocks, _, n_labels = unary.shape
    total = 0.0
    for r in range(blocks):
        for s in range(blocks):
            total += unary[r, s, int(labels[r][s])]
    for direction, place, (r, s), (a, b) in neighbours(blocks):
        weight = float((down, right)[direction][place])
        total += weight * ((int(labels[r][s]) - int(labels[a][b])) / (n_labels - 1)) ** 2
    return total


def puzzle_direct_energy(labels, xa, xb, sa, sb, lam, blocks, beta=1.2, gamma=0.5, eta=0.2):
    """Energy of a labelling by 0 and 1, straight from its meaning, without splitting the smoothness."""
    ua, ub = puzzle_unary(sa, blocks), puzzle_unary(sb, blocks)
    terms, prior = puzzle_smoothness(xa, xb, blocks, beta, gamma), puzzle_prior(lam, 2)
    total = 0.0
    for r in range(blocks):
        for s in range(blocks):
            total += (ub, ua)[int(labels[r][s])][r, s] + eta * prior[int(labels[r][s])] / blocks**2
    for direction, place, (r, s), (a, b) in neighbours(blocks):
        one, two = int(labels[r][s]), int(labels[a][b])
        total += terms[one, two][direction][place] + (beta / (16 * blocks) if one != two else 0.0)
    return total


def lowest_energy(unary, down, right):
    """The labelling of least energy among all of them, and its energy."""
    blocks, _, n_labels = array(unary).shape
    best, least = None, math.inf
    for choice in itertools.product(range(n_labels), repeat=blocks**2):
        labels = [choice[r * blocks:(r + 1) * blocks] for r in range(blocks)]
        energy = puzzle_energy(labels, unary, down, right)
        if energy < least:
            best, least = labels, energy
    return [list(row) for row in best], least


def lowest_grid_energy(unary, down, right, potts=False):
    """The least energy of a grid (h, w, n) of any shape; squared steps of labels, or Potts (1 where they differ)."""
    unary = array(unary)
    height, width, n_labels = unary.shape
    least = math.inf
    for choice in itertools.product(range(n_labels), repeat=height * width):
        total = 0.0
        for r in range(height):
            for s in range(width):
                here = choice[r * width + s]
                total += unary[r, s, here]
                if r + 1 < height:
                    below = choice[(r + 1) * width + s]
                    step = float(here != below) if potts else ((here - below) / (n_labels - 1)) ** 2
                    total += float(down[r][s]) * step
                if s + 1 < width:
                    after = choice[r * width + s + 1]
                    step = float(here != after) if potts else ((here - after) / (n_labels - 1)) ** 2
                    total += float(right[r][s]) * step
        least = min(least, total)
    return least


def transport_costs(saliency, mask, eps=0.8):
    """Costs (t t, t t) of moving patch i to place j: eps squared distance / (t-1)^2 - saliency_i [mask_j > 0]."""
    saliency, mask = array(saliency), array(mask)
    width = len(saliency)
    costs = np.zeros((width**2, width**2))
    for i in range(width**2):
        for j in range(width**2):
            distance = (i // width - j // width) ** 2 + (i % width - j % width) ** 2
            wanted = 1.0 if mask[j // width, j % width] > 0 else 0.0
            costs[i, j] = eps * distance / (width - 1) ** 2 - saliency[i // width, i % width] * wanted
    return costs


def transport_rounds(costs, rounds):
    """The place each patch wins in the last round, None if it loses: row best, column winners, losers pay 1 more."""
    costs = array(costs)
    n = len(costs)
    won = [None] * n
    for _ in range(rounds):
        wish = []
        for i in range(n):
            wish.append(min(range(n), key=lambda j, i=i: costs[i, j]))
        won = [None] * n
        for j in range(n):
            rivals = [i for i in range(n) if wish[i] == j]
            if rivals:
                winner = min(rivals, key=lambda i, j=j: costs[i, j])
                won[winner] = j
                for i in rivals:
                    if i != winner:
                        costs[i, j] += 1
    return won


def cheapest_transport(costs):
    """The least cost of giving each patch a place of its own, among all permutations."""
    costs = array(costs)
    n = len(costs)
    return min(sum(costs[i, places[i]] for i in range(n)) for places in itertools.permutations(range(n)))


def move_patches(x, places, size):
    """An image (C, H, W) whose patch i lies at places[i]; places that nobody won are 0."""
    x = array(x)
    across = x.shape[2] // size
    moved = np.zeros(x.shape)
    for i in range(len(places)):
        if places[i] is None:
            continue
        top, left = i // across * size, i % across * size
        to_top, to_left = places[i] // across * size, places[i] % across * size
        for c in range(x.shape[0]):
            for a in range(size):
                for b in range(size):
                    moved[c, to_top + a, to_left + b] = x[c, top + a, left + b]
    return moved


# ---------------------------------------------------------------- Co-Mixup


def comixup_unary(saliency, blocks=4):
    """Minus the pooled saliency of each input, each with sum 1: (n, b, b)."""
    return [-puzzle_unary(one, blocks) for one in saliency]


def comixup_prior(alpha, weight=0.05 / 16):
    """-weight log alpha_k of each input, added to every block."""
    return [-weight * math.log(float(share)) for share in alpha]


def first_peak(x):
    """Row and column of the largest value of a map, the first one row by row."""
    x = array(x)
    at = argmax(pixels(x))
    return at // x.shape[1], at % x.shape[1]


def peak_distances(maps):
    """L1 distances between the peaks of all maps: (n, n)."""
    peaks = [first_peak(one) for one in maps]
    return [[float(abs(a - c) + abs(b - d)) for c, d in peaks] for a, b in peaks]


def comixup_affinity(distances, omega=0.001):
    """A = (1 - omega) I + omega distances, which come in normalised."""
    n = len(distances)
    return [[(1 - omega) * float(i == j) + omega * float(distances[i][j]) for j in range(n)] for i in range(n)]


def usage(labels, n):
    """How many blocks of all outputs each of n inputs fills; labels (outputs, b, b), or rows of shares (..., n)."""
    counts = [0.0] * n
    labels = array(labels)
    for k in labels.reshape(-1).tolist():
        counts[int(k)] += 1
    return counts


def comixup_penalty(affinity, counts, gamma=1 / 16, threshold=0.83 * 16):
    """2 gamma (A counts)_k of each input where (A counts)_k is above the threshold, else 0."""
    penalties = []
    for row in affinity:
        load = dot(list(row), list(counts))
        penalties.append(2 * gamma * load if load > threshold else 0.0)
    return penalties


def comixup_costs(unary, prior, penalty):
    """Costs (b, b, n) of giving each block of one output to each input."""
    n, blocks = len(unary), len(unary[0])
    costs = np.zeros((blocks, blocks, n))
    for r, s, k in np.ndindex(costs.shape):
        costs[r, s, k] = unary[k][r][s] + prior[k] + penalty[k]
    return costs


def potts_energy(labels, costs, beta=0.32 / 16):
    """The costs of one output's labels (b, b), plus beta for each pair of neighbours that differ."""
    blocks = len(labels)
    total = sum(float(costs[r][s][int(labels[r][s])]) for r in range(blocks) for s in range(blocks))
    for _, _, (r, s), (a, b) in neighbours(blocks):
        if int(labels[r][s]) != int(labels[a][b]):
            total += beta
    return total


def comixup_objective(labels, unary, prior, affinity, beta=0.32 / 16, gamma=1 / 16):
    """Costs, Potts terms, and gamma times the sum over pairs of outputs of usage_j . A usage_j' (no threshold)."""
    n = len(unary)
    plain = comixup_costs(unary, prior, [0.0] * n)
    total = sum(potts_energy(one, plain, beta) for one in labels)
    counts = [usage(one, n) for one in labels]
    for j in range(len(labels)):
        for other in range(len(labels)):
            if j != other:
                total += gamma * dot(counts[j], [dot(list(row), counts[other]) for row in affinity])
    return total


def comixup_shares(labels, n):
    """The mixing matrix (outputs, n): the share of blocks of each input in each output."""
    return [[count / array(one).size for count in usage(one, n)] for one in labels]


def comixup_images(x, labels):
    """Each output's blocks copied from the inputs that its labels (outputs, b, b) name."""
    x = array(x)
    mixed = np.zeros((len(labels), *x.shape[1:]))
    for j in range(len(labels)):
        named = nearest(labels[j], x.shape[2:])
        for c, r, s in np.ndindex(x.shape[1:]):
            mixed[j, c, r, s] = x[int(named[r, s]), c, r, s]
    return mixed


# ---------------------------------------------------------------- SaliencyMix


def grey(image, weights=(0.299, 0.587, 0.114)):
    """The luminance (H, W) of an image (3, H, W); the mean of the channels if there are not three."""
    image = array(image)
    weights = weights if len(image) == 3 else [1 / len(image)] * len(image)
    result = np.zeros(image.shape[1:])
    for place in np.ndindex(result.shape):
        result[place] = sum(float(w) * image[(c, *place)] for c, w in enumerate(weights))
    return result


def integral_image(x):
    """Sums (H+1, W+1) of all values above and left of each corner."""
    x = array(x)
    sums = np.zeros((x.shape[0] + 1, x.shape[1] + 1))
    for r, s in np.ndindex(x.shape):
        sums[r + 1, s + 1] = x[r, s] + sums[r, s + 1] + sums[r + 1, s] - sums[r, s]
    return sums


def surround(x, r, s, radius, without_centre=True):
    """The mean of the square around (r, s), clipped at the border, with or without (r, s) itself: by plain sums."""
    x = array(x)
    values = []
    for a in range(max(r - radius, 0), min(r + radius + 1, x.shape[0])):
        for b in range(max(s - radius, 0), min(s + radius + 1, x.shape[1])):
            if not (without_centre and (a, b) == (r, s)):
                values.append(x[a, b])
    return mean(values)


def surround_by_corners(sums, r, s, radius, centre=None):
    """The same by four corners of the integral image; `centre` is the value to leave out, if any."""
    top, left = max(r - radius, 0), max(s - radius, 0)
    bottom, right = min(r + radius + 1, len(sums) - 1), min(s + radius + 1, len(sums[0]) - 1)
    total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    count = (bottom - top) * (right - left)
    return total / count if centre is None else (total - centre) / (count - 1)


def fine_grained(image, radii, without_centre=True):
    """Centre-surround saliency (H, W) of a grey image: brighter plus darker than the surround, over all radii."""
    image = array(image)
    sums = integral_image(image)
    result = np.zeros(image.shape)
    for r, s in np.ndindex(image.shape):
        for radius in radii:
            around = surround_by_corners(sums, r, s, radius, image[r, s] if without_centre else None)
            on, off = max(image[r, s] - around, 0.0), max(around - image[r, s], 0.0)
            result[r, s] += on + off
    return result


def saliency_box(saliency, lam):
    """CutMix's box for lam around the most salient pixel, clipped."""
    height, width = array(saliency).shape
    return cutmix_box(height, width, lam, *first_peak(saliency))


def box_share(box, h, w):
    """The realised share of the first image: 1 - the box's area over the image's."""
    top, bottom, left, right = box
    return 1 - (bottom - top) * (right - left) / (h * w)
