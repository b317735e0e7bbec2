"""Naive float64 loop references that the tests compare the package against.

Only `math`, `colorsys` and `numpy` (as a container) are used. Every function follows its formula term by term, and
speed does not matter. Temperatures are plain divisors: no extra `tau / base_tau` factor is applied anywhere.
"""

import colorsys
import math

import numpy as np

# ---------------------------------------------------------------- small helpers


def rows(x):
    """A 2-D array-like as a list of lists of Python floats."""
    return np.asarray(x, dtype=np.float64).tolist()


def dot(a, b):
    """Inner product of two equally long vectors."""
    total = 0.0
    for p, q in zip(a, b, strict=True):
        total += p * q
    return total


def unit_rows(x):
    """Rows of x divided by their Euclidean length (at least 1e-12)."""
    result = []
    for row in rows(x):
        length = max(math.sqrt(dot(row, row)), 1e-12)
        result.append([value / length for value in row])
    return result


def log_sum_exp(values):
    """log(sum(exp(v))) of a non-empty list, shifted by its maximum."""
    top = max(values)
    total = 0.0
    for value in values:
        total += math.exp(value - top)
    return top + math.log(total)


def argmax(values):
    """Position of the largest value, the first one if several are equal."""
    best = 0
    for i in range(len(values)):
        if values[i] > values[best]:
            best = i
    return best


# ---------------------------------------------------------------- contrastive losses


def label_similarity(t, label_sim="dot"):
    """Phi[i][j], the agreement of label rows i and j, as 'dot', 'cosine' or 'hard' (same dominant class)."""
    t = rows(t)
    m = len(t)
    phi = [[0.0] * m for _ in range(m)]
    for i in range(m):
        for j in range(m):
            if label_sim == "dot":
                phi[i][j] = dot(t[i], t[j])
            elif label_sim == "cosine":
                lengths = math.sqrt(dot(t[i], t[i])) * math.sqrt(dot(t[j], t[j]))
                phi[i][j] = dot(t[i], t[j]) / lengths if lengths > 0 else 0.0
            elif label_sim == "hard":
                phi[i][j] = 1.0 if argmax(t[i]) == argmax(t[j]) else 0.0
            else:
                raise ValueError(label_sim)
    return phi


def contrastive(z, t, tau, denominator="row", normalizer="pairs", label_sim="dot", empty="skip", include_self=False):
    """MixSupCon: -sum_ij w_ij (z_i.z_j / tau - log DEN_i) over the kept ordered pairs."""
    if denominator not in ("row", "global"):
        raise ValueError(denominator)
    if normalizer not in ("pairs", "anchor"):
        raise ValueError(normalizer)
    if empty not in ("skip", "zero"):
        raise ValueError(empty)
    z = unit_rows(z)
    phi = label_similarity(t, label_sim)
    m = len(z)

    # partners[i]: the rows j for which the pair (i, j) is kept
    partners = []
    for i in range(m):
        partners.append([j for j in range(m) if include_self or j != i])

    mass = []  # label mass of each anchor: sum_j Phi_ij
    for i in range(m):
        mass.append(sum(phi[i][j] for j in partners[i]))
    total_mass = sum(mass)
    if total_mass == 0:
        return 0.0

    # log DEN_i, over the partners of i or over all kept pairs of the batch
    log_den = []
    if denominator == "row":
        for i in range(m):
            log_den.append(log_sum_exp([dot(z[i], z[a]) / tau for a in partners[i]]))
    else:
        every_pair = []
        for a in range(m):
            for b in partners[a]:
                every_pair.append(dot(z[a], z[b]) / tau)
        for _ in range(m):
            log_den.append(log_sum_exp(every_pair))

    # number of anchors that the 'anchor' normaliser averages over
    anchors = 0
    for i in range(m):
        if mass[i] > 0 or empty == "zero":
            anchors += 1

    loss = 0.0
    for i in range(m):
        if mass[i] == 0:
            continue
        for j in partners[i]:
            psi = dot(z[i], z[j]) / tau - log_den[i]
            if normalizer == "pairs":
                weight = phi[i][j] / total_mass
            else:
                weight = phi[i][j] / mass[i] / anchors
            loss -= weight * psi
    return loss


def supcon(z, y, tau):
    """SupCon L_out: mean over an anchor's positives, then mean over all anchors (no positives counts as 0)."""
    z = unit_rows(z)
    y = np.asarray(y).tolist()
    m = len(z)
    total = 0.0
    for i in range(m):
        positives = [j for j in range(m) if j != i and y[j] == y[i]]
        if not positives:
            continue
        log_den = log_sum_exp([dot(z[i], z[a]) / tau for a in range(m) if a != i])
        anchor = 0.0
        for j in positives:
            anchor -= dot(z[i], z[j]) / tau - log_den
        total += anchor / len(positives)
    return total / m


def ntxent(z1, z2, tau):
    """NT-Xent of SimCLR: 2N anchors, the positive is the other view, the denominator leaves out the anchor itself."""
    first, second = unit_rows(z1), unit_rows(z2)
    n = len(first)
    z = first + second
    total = 0.0
    for i in range(2 * n):
        positive = i + n if i < n else i - n
        log_den = log_sum_exp([dot(z[i], z[a]) / tau for a in range(2 * n) if a != i])
        total -= dot(z[i], z[positive]) / tau - log_den
    return total / (2 * n)


def as_printed(z, t, tau):
    """Eq. 4-6 of the paper with every index taken literally as k: always log(M(M-1)), needs M >= 2."""
    z = unit_rows(z)
    t = rows(t)
    m = len(z)
    weighted, mass = 0.0, 0.0
    for k in range(m):
        own = dot(z[k], z[k]) / tau
        terms = []
        for i in range(m):
            for j in range(m):
                if i != j:
                    terms.append(own)
        psi = own - log_sum_exp(terms)  # Eq. 5
        phi = dot(t[k], t[k])  # Eq. 6
        weighted += phi * psi
        mass += phi
    return -weighted / mass  # Eq. 4


def gap(z, phi, tau):
    """Global minus row loss for 'pairs': LSE_all - sum_i omega_i LSE_i (the diagonal of phi is ignored)."""
    z = unit_rows(z)
    phi = rows(phi)
    m = len(z)
    lse, mass = [], []
    for i in range(m):
        others = [a for a in range(m) if a != i]
        lse.append(log_sum_exp([dot(z[i], z[a]) / tau for a in others]))
        mass.append(sum(phi[i][j] for j in others))
    total_mass = sum(mass)
    if total_mass == 0:
        return 0.0
    result = log_sum_exp(lse)  # log sum_i DEN_i
    for i in range(m):
        result -= mass[i] / total_mass * lse[i]
    return result


# ---------------------------------------------------------------- mixing


def mixup(xa, xb, lam):
    """MixUp of two arrays of the same shape: lam xa + (1 - lam) xb, entry by entry."""
    xa, xb = np.asarray(xa, dtype=np.float64), np.asarray(xb, dtype=np.float64)
    mixed = np.zeros(xa.shape)
    for place in np.ndindex(xa.shape):
        mixed[place] = lam * xa[place] + (1 - lam) * xb[place]
    return mixed


def cutmix_box(h, w, lam, cy, cx):
    """CutMix box (top, bottom, left, right), ends exclusive, around (cy, cx) and clipped to the image."""
    cut = math.sqrt(1 - lam)
    half_h = int(h * cut) // 2
    half_w = int(w * cut) // 2
    top = min(max(cy - half_h, 0), h)
    bottom = min(max(cy + half_h, 0), h)
    left = min(max(cx - half_w, 0), w)
    right = min(max(cx + half_w, 0), w)
    return top, bottom, left, right


def cutmix(xa, xb, box):
    """A copy of xa (..., H, W) with the pixels inside the box taken from xb."""
    xb = np.asarray(xb)
    mixed = np.array(xa)
    top, bottom, left, right = box
    for r in range(mixed.shape[-2]):
        for c in range(mixed.shape[-1]):
            if top <= r < bottom and left <= c < right:
                mixed[..., r, c] = xb[..., r, c]
    return mixed


def share(xa, xb, mixed):
    """Weight of xa in one mixed image (C, H, W): 1 - the fraction of pixels that differ from xa in some channel."""
    xa, xb, mixed = np.asarray(xa), np.asarray(xb), np.asarray(mixed)
    if xa.ndim not in (2, 3):
        raise ValueError("one image at a time")
    height, width = xa.shape[-2:]
    changed = 0
    for r in range(height):
        for c in range(width):
            if np.any(mixed[..., r, c] != xa[..., r, c]):
                if np.any(mixed[..., r, c] != xb[..., r, c]):
                    raise ValueError("pixel (%d, %d) comes from neither image" % (r, c))
                changed += 1
    return 1 - changed / (height * width)


# ---------------------------------------------------------------- nearest neighbours


def knn5(train, y, test):
    """Labels by majority vote of the 5 Euclidean neighbours; equal votes go to the smallest label."""
    train, test = rows(train), rows(test)
    y = np.asarray(y).tolist()
    predicted = []
    for point in test:
        distance = []
        for row in train:
            distance.append(math.sqrt(sum((p - q) ** 2 for p, q in zip(point, row, strict=True))))
        nearest = sorted(range(len(train)), key=lambda i: (distance[i], i))[:5]
        votes = {}
        for i in nearest:
            votes[y[i]] = votes.get(y[i], 0) + 1
        most = max(votes.values())
        predicted.append(min(label for label in votes if votes[label] == most))
    return np.array(predicted)


def knn_weighted(train, y, test, k, tau, classes):
    """Labels by the vote of the k most cosine-similar rows, each weighing exp(similarity / tau)."""
    train, test = unit_rows(train), unit_rows(test)
    y = np.asarray(y).tolist()
    predicted = []
    for point in test:
        similarity = [dot(point, row) for row in train]
        nearest = sorted(range(len(train)), key=lambda i: (-similarity[i], i))[:k]
        score = [0.0] * classes
        for i in nearest:
            score[y[i]] += math.exp(similarity[i] / tau)
        predicted.append(argmax(score))
    return np.array(predicted)


# ---------------------------------------------------------------- schedule


def step_lr(epoch, lr, milestones, rate):
    """Step-decayed learning rate of a 1-based epoch: one factor `rate` for each milestone that lies before it."""
    for milestone in milestones:
        if epoch > milestone:
            lr = lr * rate
    return lr


# ---------------------------------------------------------------- augmentation


def crop_weights(start, length, out, size):
    """Matrix (out, size) that crops [start, start + length) and resizes it to `out` with a triangle filter."""
    if start < 0 or start + length > size:
        raise ValueError("the crop leaves the axis")
    scale = length / out
    half_width = max(scale, 1.0)
    matrix = np.zeros((out, size))
    for i in range(out):
        centre = (i + 0.5) * scale
        raw = []
        for j in range(length):
            offset = abs((j + 0.5) - centre) / half_width
            raw.append(max(1.0 - offset, 0.0))
        total = sum(raw)
        for j in range(length):
            matrix[i, start + j] = raw[j] / total
    return matrix


def hsv_hue_shift(rgb, shift):
    """One RGB pixel in [0, 1] with its hue turned by `shift`, a fraction of the full circle."""
    hue, saturation, value = colorsys.rgb_to_hsv(*[float(channel) for channel in rgb])
    return colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)
