"""Naive float64 loop references for the losses of the base methods, i-Mix, Un-Mix and MixSiam, and for their parts.

Only `math`, `numpy` (as a container, and for the covariances of `fed`) and `scipy.linalg.sqrtm` (in `fed` only) are
used. Embeddings come in raw and their rows are brought to unit length inside, except where a function says otherwise.
`own` holds the share of each row's own image and `partner` the index of the other image of the mixture. Speed does
not matter.
"""

import math

import numpy as np
from oracle import dot, log_sum_exp, rows, unit_rows
from scipy.linalg import sqrtm

# ---------------------------------------------------------------- small helpers


def plain(values):
    """A 1-D array-like as a list of Python numbers."""
    return np.asarray(values).tolist()


def reverse(x):
    """The rows of x from last to first, so that row i becomes row N-1-i."""
    return rows(x)[::-1]


def cross_entropy(logits, column):
    """-log softmax(logits)[column]."""
    return log_sum_exp(logits) - logits[column]


def mean_cross_entropy(logits, columns):
    """Mean of -log softmax(logits) over the given columns, 0 if there are none."""
    if not columns:
        return 0.0
    total = 0.0
    for column in columns:
        total += cross_entropy(logits, column)
    return total / len(columns)


def mean_cosine(a, b):
    """Mean over i of the cosine between row i of a and row i of b."""
    a, b = unit_rows(a), unit_rows(b)
    total = 0.0
    for first, second in zip(a, b, strict=True):
        total += dot(first, second)
    return total / len(a)


# ---------------------------------------------------------------- N-pair and Sup-N-pair


def npair(q, k, own, partner, tau):
    """i-Mix N-pair, q against all N keys: mean of own_i CE(i) + (1 - own_i) CE(partner_i)."""
    q, k = unit_rows(q), unit_rows(k)
    own, partner = plain(own), plain(partner)
    n = len(q)
    total = 0.0
    for i in range(n):
        logits = [dot(q[i], key) / tau for key in k]
        total += own[i] * cross_entropy(logits, i) + (1 - own[i]) * cross_entropy(logits, partner[i])
    return total / n


def sup_npair(q, k, y, own, partner, tau, include_own_view=True):
    """Sup-N-pair: as npair, but each source has all keys of its class as positives (without itself if literal)."""
    q, k = unit_rows(q), unit_rows(k)
    y, own, partner = plain(y), plain(own), plain(partner)
    n = len(q)

    # positives[s]: the columns of the virtual label of image s
    positives = []
    for s in range(n):
        positives.append([j for j in range(n) if y[j] == y[s] and (include_own_view or j != s)])

    total = 0.0
    for i in range(n):
        logits = [dot(q[i], key) / tau for key in k]
        total += own[i] * mean_cross_entropy(logits, positives[i])
        total += (1 - own[i]) * mean_cross_entropy(logits, positives[partner[i]])
    return total / n


# ---------------------------------------------------------------- SimCLR and SupCLR


def ntxent(a, b, tau):
    """NT-Xent of SimCLR over 2N rows: the positive is the other view, the row itself is not in its denominator."""
    z = unit_rows(a) + unit_rows(b)
    n = len(z) // 2
    total = 0.0
    for i in range(2 * n):
        logits = []
        place = None  # where the positive stands among the logits
        for j in range(2 * n):
            if j == i:
                continue
            if j == (i + n) % (2 * n):
                place = len(logits)
            logits.append(dot(z[i], z[j]) / tau)
        total += cross_entropy(logits, place)
    return total / (2 * n)


def unmix_ntxent(z1, z2, zm, lam, tau):
    """Un-Mix on SimCLR: the clean NT-Xent plus lam and 1 - lam times that of the mixture and the reversed mixture."""
    clean = ntxent(z1, z2, tau)
    normal = ntxent(zm, z2, tau)
    reversed_order = ntxent(reverse(zm), z2, tau)
    return clean + lam * normal + (1 - lam) * reversed_order


def imix_pot(anchors, contrasts, y, own, partner, tau):
    """i-Mix on SimCLR/SupCLR: 2N mixed anchors against the 2N clean contrasts, column i masked for anchor i."""
    anchors, contrasts = unit_rows(anchors), unit_rows(contrasts)
    y, own, partner = plain(y), plain(own), plain(partner)
    m = len(anchors)
    total = 0.0
    for i in range(m):
        log_den = log_sum_exp([dot(anchors[i], contrasts[k]) / tau for k in range(m) if k != i])
        for weight, source in ((own[i], i), (1 - own[i], partner[i])):
            positives = [k for k in range(m) if y[k] == y[source] and k != source and k != i]
            if not positives:
                continue
            mean = 0.0
            for k in positives:
                mean += (log_den - dot(anchors[i], contrasts[k]) / tau) / len(positives)
            total += weight * mean
    return total / m


# ---------------------------------------------------------------- MoCo


def moco(q, k, queue, own, partner, tau):
    """MoCo, (1+K)-way: own_i CE with k_i before the queue + (1 - own_i) CE with k_partner before the queue."""
    q, k, queue = unit_rows(q), unit_rows(k), unit_rows(queue)
    own, partner = plain(own), plain(partner)
    n = len(q)
    total = 0.0
    for i in range(n):
        negatives = [dot(q[i], row) / tau for row in queue]
        with_own = [dot(q[i], k[i]) / tau] + negatives
        with_partner = [dot(q[i], k[partner[i]]) / tau] + negatives
        total += own[i] * cross_entropy(with_own, 0) + (1 - own[i]) * cross_entropy(with_partner, 0)
    return total / n


def mocon(q, k, queue, own, partner, tau):
    """i-Mix MoCo, (N+K)-way: all N keys and the queue, own_i CE(i) + (1 - own_i) CE(partner_i)."""
    q, k, queue = unit_rows(q), unit_rows(k), unit_rows(queue)
    own, partner = plain(own), plain(partner)
    n = len(q)
    total = 0.0
    for i in range(n):
        logits = [dot(q[i], row) / tau for row in k + queue]
        total += own[i] * cross_entropy(logits, i) + (1 - own[i]) * cross_entropy(logits, partner[i])
    return total / n


# ---------------------------------------------------------------- BYOL, SimSiam, MixSiam


def byol(p, k, own, partner):
    """One-directional BYOL: mean of 2 - 2 (own_i cos(p_i, k_i) + (1 - own_i) cos(p_i, k_partner))."""
    p, k = unit_rows(p), unit_rows(k)
    own, partner = plain(own), plain(partner)
    n = len(p)
    total = 0.0
    for i in range(n):
        agreement = own[i] * dot(p[i], k[i]) + (1 - own[i]) * dot(p[i], k[partner[i]])
        total += 2 - 2 * agreement
    return total / n


def simsiam(p1, p2, z1, z2):
    """SimSiam: half of D(p1, z2) plus half of D(p2, z1), D being minus the mean cosine."""
    return 0.5 * -mean_cosine(p1, z2) + 0.5 * -mean_cosine(p2, z1)


def mixsiam(p1, p2, pm, z1, z2, lam, agg, agg_norm):
    """MixSiam: lam SimSiam + (1 - lam) D(pm, zf), zf the elementwise 'max' or 'avg' of z1 and z2, raw or unit rows."""
    if agg_norm == "pre":
        first, second = rows(z1), rows(z2)
    elif agg_norm == "post":
        first, second = unit_rows(z1), unit_rows(z2)
    else:
        raise ValueError(agg_norm)
    zf = []
    for row, other in zip(first, second, strict=True):
        if agg == "max":
            zf.append([max(u, v) for u, v in zip(row, other, strict=True)])
        elif agg == "avg":
            zf.append([(u + v) / 2 for u, v in zip(row, other, strict=True)])
        else:
            raise ValueError(agg)
    return lam * simsiam(p1, p2, z1, z2) + (1 - lam) * -mean_cosine(pm, zf)


# ---------------------------------------------------------------- SwAV (scores are taken as they are)


def sinkhorn(scores, eps, iterations):
    """SwAV codes (N x P, rows sum to one) of the scores (N x P)."""
    scores = rows(scores)
    n, prototypes = len(scores), len(scores[0])

    # Q is P x N: a row for each prototype, a column for each sample
    q = [[math.exp(scores[i][p] / eps) for i in range(n)] for p in range(prototypes)]
    everything = sum(sum(row) for row in q)
    for p in range(prototypes):
        for i in range(n):
            q[p][i] /= everything

    for _ in range(iterations):
        for p in range(prototypes):
            mass = sum(q[p])
            for i in range(n):
                q[p][i] = q[p][i] / mass / prototypes
        for i in range(n):
            mass = sum(q[p][i] for p in range(prototypes))
            for p in range(prototypes):
                q[p][i] = q[p][i] / mass / n

    return [[q[p][i] * n for p in range(prototypes)] for i in range(n)]


def code_loss(scores, codes, tau):
    """-mean_i sum_p codes_ip log softmax(scores / tau)_ip."""
    scores = rows(scores)
    total = 0.0
    for row, code in zip(scores, codes, strict=True):
        logits = [score / tau for score in row]
        for p in range(len(logits)):
            total += code[p] * cross_entropy(logits, p)
    return total / len(scores)


def swap(scores_a, scores_b, tau, eps, iterations):
    """Swapped prediction of two views: half of (a predicts the code of b) + (b predicts the code of a)."""
    code_a = sinkhorn(scores_a, eps, iterations)
    code_b = sinkhorn(scores_b, eps, iterations)
    return (code_loss(scores_a, code_b, tau) + code_loss(scores_b, code_a, tau)) / 2


def multicrop(all_scores, tau, eps, iterations, assigned=2):
    """SwAV with several views: the code of each assigned view, predicted by every other view, averaged twice."""
    total = 0.0
    for a in range(assigned):
        code = sinkhorn(all_scores[a], eps, iterations)
        others = [v for v in range(len(all_scores)) if v != a]
        predicted = 0.0
        for v in others:
            predicted += code_loss(all_scores[v], code, tau)
        total += predicted / len(others)
    return total / assigned


def unmix_swap(s1, s2, sm, lam, tau, eps, iterations):
    """Un-Mix on SwAV: the clean swap plus lam and 1 - lam times that of the mixture and the reversed mixture."""
    clean = swap(s1, s2, tau, eps, iterations)
    normal = swap(sm, s2, tau, eps, iterations)
    reversed_order = swap(reverse(sm), s2, tau, eps, iterations)
    return clean + lam * normal + (1 - lam) * reversed_order


def unmix_swap_released(s1, s2, sm, lam, tau, eps, iterations):
    """As Un-Mix's code has it: in the reversed term the mixture's codes are reversed, its predictions are not."""
    clean = swap(s1, s2, tau, eps, iterations)
    normal = swap(sm, s2, tau, eps, iterations)
    predicts = code_loss(sm, sinkhorn(s2, eps, iterations), tau)
    predicted = code_loss(s2, reverse(sinkhorn(sm, eps, iterations)), tau)
    return clean + lam * normal + (1 - lam) * (predicts + predicted) / 2


# ---------------------------------------------------------------- W-MSE


def covariance(e):
    """The mean row and the D x D covariance (divisor n - 1) of the rows of e."""
    e = rows(e)
    n, d = len(e), len(e[0])
    mean = [sum(row[c] for row in e) / n for c in range(d)]
    cov = [[0.0] * d for _ in range(d)]
    for a in range(d):
        for b in range(d):
            for row in e:
                cov[a][b] += (row[a] - mean[a]) * (row[b] - mean[b])
            cov[a][b] /= n - 1
    return mean, cov


def cholesky(matrix):
    """The lower triangular L with L L^T = matrix; ValueError if the matrix is not positive definite."""
    d = len(matrix)
    lower = [[0.0] * d for _ in range(d)]
    for r in range(d):
        for c in range(r + 1):
            rest = matrix[r][c]
            for t in range(c):
                rest -= lower[r][t] * lower[c][t]
            if r == c:
                if rest <= 0:
                    raise ValueError("not positive definite")
                lower[r][c] = math.sqrt(rest)
            else:
                lower[r][c] = rest / lower[c][c]
    return lower


def forward_substitution(lower, right):
    """The solution x of lower x = right, lower being lower triangular."""
    x = []
    for r in range(len(right)):
        rest = right[r]
        for c in range(r):
            rest -= lower[r][c] * x[c]
        x.append(rest / lower[r][r])
    return x


def whiten(e, eps=0.0):
    """The raw rows of one sub-batch, centred and multiplied by the inverse Cholesky factor of their covariance."""
    e = rows(e)
    d = len(e[0])
    mean, cov = covariance(e)
    for a in range(d):
        for b in range(d):
            cov[a][b] = (1 - eps) * cov[a][b] + (eps if a == b else 0.0)
    lower = cholesky(cov)
    white = []
    for row in e:
        white.append(forward_substitution(lower, [row[c] - mean[c] for c in range(d)]))
    return white


def wmse(views, order, size):
    """W-MSE of d raw views: groups of `size` along `order` are whitened per view, then 2 - 2 cos over all pairs."""
    order = plain(order)
    n = len(order)
    if n % size:
        raise ValueError("the sub-batch size does not divide the batch")

    white_views = []
    for view in views:
        view = rows(view)
        white = [None] * n
        for start in range(0, n, size):
            group = order[start : start + size]
            for i, row in zip(group, whiten([view[i] for i in group]), strict=True):
                white[i] = row
        white_views.append(white)

    total, pairs = 0.0, 0
    for a in range(len(views)):
        for b in range(a + 1, len(views)):
            total += 2 - 2 * mean_cosine(white_views[a], white_views[b])
            pairs += 1
    return total / pairs


def unmix_wmse2(e1, e2, em, lam, order, order_m, size):
    """Un-Mix on W-MSE2: the clean loss plus lam and 1 - lam times that of the mixture, reversed before whitening."""
    clean = wmse([e1, e2], order, size)
    normal = wmse([em, e2], order_m, size)
    reversed_order = wmse([reverse(em), e2], order_m, size)
    return clean + lam * normal + (1 - lam) * reversed_order


# ---------------------------------------------------------------- slow weights and queue


def ema(slow, fast, m):
    """The slow weights after one step: m slow + (1 - m) fast, entry by entry."""
    return [m * s + (1 - m) * f for s, f in zip(slow, fast, strict=True)]


def fifo(queue, keys, length):
    """The rows (as they are) of the batch `keys`, in their order, then those of `queue`, cut to `length` rows."""
    result = []
    for row in list(keys) + list(queue):
        if len(result) < length:
            result.append(plain(row))
    return result


# ---------------------------------------------------------------- embedding gap


def fed(a, b):
    """Frechet embedding distance of the unit rows of a and b (sample covariances; needs more rows than columns)."""
    a, b = np.array(unit_rows(a)), np.array(unit_rows(b))
    c1, c2 = np.cov(a, rowvar=False, ddof=1), np.cov(b, rowvar=False, ddof=1)
    root = np.real(sqrtm(c1 @ c2))
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(np.sum(shift**2) + np.trace(c1 + c2 - 2 * root))
