"""Naive float64 loop references for the further mixers and the losses of MixCo and GenSCL.

Only `cmath`, `math` and `numpy` (as a container) are used. Written from the formulas, one image or one row at a time;
speed does not matter. Images are (C, H, W); boxes are (top, bottom, left, right) with the ends exclusive.
"""

import cmath
import math

import numpy as np

# ---------------------------------------------------------------- small helpers


def clip(value, top):
    """An integer limited to [0, top]."""
    return min(max(value, 0), top)


def cosine(a, b):
    """Cosine similarity of two vectors, 0 if either has no length."""
    inner, first, second = 0.0, 0.0, 0.0
    for p, q in zip(a, b, strict=True):
        inner += float(p) * float(q)
        first += float(p) * float(p)
        second += float(q) * float(q)
    return inner / (math.sqrt(first) * math.sqrt(second)) if first > 0 and second > 0 else 0.0


def log_sum_exp(values):
    """log(sum(exp(v))) of a non-empty list, shifted by its maximum."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


# ---------------------------------------------------------------- ResizeMix


def resize_box(h, w, side, cy, cx):
    """ResizeMix box whose sides are the share `side` of the image's, around (cy, cx) and clipped to the image."""
    half_h = int(h * side) // 2
    half_w = int(w * side) // 2
    return clip(cy - half_h, h), clip(cy + half_h, h), clip(cx - half_w, w), clip(cx + half_w, w)


def resizemix(xa, xb, box):
    """A copy of xa (C, H, W) whose box holds all of xb, resized by nearest neighbour: source floor(i H / size)."""
    xb = np.asarray(xb, dtype=np.float64)
    mixed = np.array(xa, dtype=np.float64)
    channels, height, width = xb.shape
    top, bottom, left, right = box
    for c in range(channels):
        for i in range(bottom - top):
            for j in range(right - left):
                source_row = i * height // (bottom - top)  # in whole numbers, so exact
                source_column = j * width // (right - left)
                mixed[c, top + i, left + j] = xb[c, source_row, source_column]
    return mixed


# ---------------------------------------------------------------- FMix


def fmix_field(spectrum, h, w):
    """The real field (h, w) of a half spectrum (h, w // 2 + 1) whose entries are divided by max(f, 1/max(h, w))**3."""
    half = w // 2 + 1
    spectrum = np.asarray(spectrum, dtype=np.complex128)
    if spectrum.shape != (h, half):
        raise ValueError("the spectrum must be (h, w // 2 + 1)")
    scaled = [[0j] * half for _ in range(h)]
    for i in range(h):
        fy = i / h if i < (h + 1) // 2 else (i - h) / h
        for j in range(half):
            fx = j / w
            frequency = max(math.sqrt(fy * fy + fx * fx), 1 / max(h, w))
            scaled[i][j] = complex(spectrum[i, j]) / frequency**3

    # inverse complex transform over the rows axis
    lines = [[0j] * half for _ in range(h)]
    for r in range(h):
        for j in range(half):
            for i in range(h):
                lines[r][j] += scaled[i][j] * cmath.exp(2j * math.pi * (i * r % h) / h) / h

    # inverse real transform over the last axis: column j stands for the columns j and w - j, which is its conjugate
    field = np.zeros((h, w))
    for r in range(h):
        for c in range(w):
            total = lines[r][0].real
            for j in range(1, half):
                if 2 * j == w:  # Nyquist: its own mirror image
                    total += lines[r][j].real * math.cos(math.pi * (c % 2))
                else:
                    total += 2 * (lines[r][j] * cmath.exp(2j * math.pi * (j * c % w) / w)).real
            field[r, c] = total / w
    return field


def fmix_mask(spectrum, h, w, lam, up):
    """Mask (h, w): 1 on the k highest pixels of the field, k = lam h w rounded up or down; ties go row by row."""
    field = fmix_field(spectrum, h, w)
    k = math.ceil(lam * (h * w)) if up else math.floor(lam * (h * w))
    places = [(r, c) for r in range(h) for c in range(w)]
    places.sort(key=lambda place: -field[place])
    mask = np.zeros((h, w))
    for place in places[:k]:
        mask[place] = 1.0
    return mask


def fmix(xa, xb, mask):
    """The pixels of xa (C, H, W) where the mask (H, W) is 1, those of xb elsewhere."""
    xb = np.asarray(xb, dtype=np.float64)
    mixed = np.array(xa, dtype=np.float64)
    for c, r, s in np.ndindex(mixed.shape):
        if mask[r][s] != 1:
            mixed[c, r, s] = xb[c, r, s]
    return mixed


# ---------------------------------------------------------------- InputMix and ManifoldMix


def inputmix(x, a, b, d):
    """(d0/2 + 1/2) x + d1/2 a + d2/2 b, pixel by pixel, for one image x and two auxiliaries a, b."""
    x, a, b = (np.asarray(image, dtype=np.float64) for image in (x, a, b))
    mixed = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        mixed[place] = (0.5 * d[0] + 0.5) * x[place] + 0.5 * d[1] * a[place] + 0.5 * d[2] * b[place]
    return mixed


def manifold(f1, f2, x1, x2, p, q, lam_a, lam_b):
    """ManifoldMix: both views through f1, mixed there, then f2; the N rows of view 1 and then the N rows of view 2."""
    n = len(x1)
    first = [np.asarray(f1(x1[k]), dtype=np.float64) for k in range(n)]
    second = [np.asarray(f1(x2[k]), dtype=np.float64) for k in range(n)]
    outputs = []
    for own, other, partner, lam in ((first, second, p, lam_a), (second, first, q, lam_b)):
        for k in range(n):
            mixed = np.zeros(own[k].shape)
            for place in np.ndindex(mixed.shape):
                mixed[place] = lam[k] * own[k][place] + (1 - lam[k]) * other[partner[k]][place]
            outputs.append(f2(mixed))
    return outputs


# ---------------------------------------------------------------- losses of MixCo and GenSCL


def mixco(z1, z2, zx, lam, tau, mix_tau, beta):
    """NT-Xent of the clean views + beta * soft cross-entropy of the N // 2 mixtures against the N clean keys z2."""
    n, half = len(z1), len(z1) // 2
    pot = [*z1, *z2]
    clean = 0.0
    for i in range(2 * n):
        positive = i + n if i < n else i - n
        logits = [cosine(pot[i], pot[j]) / tau for j in range(2 * n) if j != i]
        clean -= (cosine(pot[i], pot[positive]) / tau - log_sum_exp(logits)) / (2 * n)
    mixed = 0.0
    for i in range(half):
        logits = [cosine(zx[i], z2[j]) / mix_tau for j in range(n)]
        log_den = log_sum_exp(logits)
        mixed -= (lam[i] * (logits[i] - log_den) + (1 - lam[i]) * (logits[i + half] - log_den)) / half
    return clean + beta * mixed


def genscl(z1, z2, t1, t2, tau):
    """SupCon over the 2N mixed rows, pairs weighted by label cosine; mean over the anchors with a positive."""
    pot, labels = [*z1, *z2], [*t1, *t2]
    losses = []
    for i in range(len(pot)):
        others = [j for j in range(len(pot)) if j != i]
        log_den = log_sum_exp([cosine(pot[i], pot[j]) / tau for j in others])
        mass = sum(cosine(labels[i], labels[j]) for j in others)
        if mass > 0:
            weighted = sum(cosine(labels[i], labels[j]) * (cosine(pot[i], pot[j]) / tau - log_den) for j in others)
            losses.append(-weighted / mass)
    return sum(losses) / len(losses) if losses else 0.0
