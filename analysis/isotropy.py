"""
How evenly do token vectors fill their space? The measures of the literature, from sums that are streamed.

Spectrum of the covariance (of all tokens; eigenvalues l_1 >= ... >= l_C, centred; none depends on the scale of the
vectors):

    IsoScore              Rudman et al. 2022, from the eigenvalues normalised to length sqrt C: 1 isotropic, 0 rank 1
    effective rank        exp H(p), p_i = s_i / sum s, s_i = sqrt l_i the singular values  (Roy and Vetterli 2007)
    sing.-value entropy   H(p) / log C
    participation ratio   (sum l)^2 / sum l^2
    share of variance     (l_1 + ... + l_k) / sum l

Directions (of a fixed number of kept tokens):

    mean cosine           of random pairs of tokens from different sequences: 'anisotropy' (Ethayarajh 2019); and of the
                          same pairs after every coordinate has been standardised (Timkey and van Schijndel 2021)
    partition isotropy    min_d Z(d) / max_d Z(d), Z(d) = sum_i exp<d, x_i>, d the eigenvectors of sum_i x_i x_i^T  (Mu
                          and Viswanath 2018). An eigenvector's sign is arbitrary, so both signs are tried. It depends
                          on the scale: also with the vectors divided by their root mean square length
    rogue share           the largest part of the mean cosine that one coordinate makes: E[u_i v_i] of unit vectors u,
                          v, absolute values summed over coordinates (Timkey and van Schijndel 2021)
    rogue dimensions      coordinates whose root mean square is more than 3 standard deviations above the mean over
                          coordinates (after Kovaleva et al. 2021)

Contexts (of all tokens):

    self-similarity       mean cosine of a token type with itself in other sequences (Ethayarajh 2019), mean over types;
                          'adjusted': minus the mean cosine of random pairs

Shapes: C coordinates, G groups of sequences, R = 1 + B rows of bootstrap weights (group_bootstrap.py). float64.

References
    Ethayarajh 2019, How Contextual are Contextualized Word Representations?, arXiv:1909.00512
    Kovaleva et al. 2021, BERT Busters: Outlier Dimensions that Disrupt Transformers, arXiv:2105.06990
    Mu, Viswanath 2018, All-but-the-Top, arXiv:1702.01417
    Roy, Vetterli 2007, The Effective Rank: a Measure of Effective Dimensionality, EUSIPCO
    Rudman et al. 2022, IsoScore: Measuring the Uniformity of Embedding Space Utilization, arXiv:2108.07344
    Timkey, van Schijndel 2021, All Bark and No Bite: Rogue Dimensions in Transformer Language Models, arXiv:2109.04404
"""
import numpy as np
from scipy.special import entr, logsumexp

TOP = (1, 3, 10)  # directions whose share of the variance is given
MIN_CONTEXTS = 5  # sequences in which a token type must occur for its self-similarity, as in Ethayarajh 2019


# ----------------------------------------------------------------------------------------------------------------------
# measures of a spectrum: eigenvalues (..., C), descending -> (...)

def _shares(values):
    with np.errstate(invalid="ignore", divide="ignore"):  # a cloud of one point has no shares: NaN
        return values / values.sum(-1, keepdims=True)


def isoscore(eigenvalues):
    """IsoScore of a covariance (Rudman et al. 2022, algorithm 1), in [0, 1]. C >= 2.

    With e = sqrt(C) l/|l| and the defect d = |e - 1| / sqrt(2 (C - sqrt C)), the share of dimensions that are used is
    f = (C - d^2 (C - sqrt C))^2 / C^2 and the score (C f - 1)/(C - 1).
    """
    C = eigenvalues.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        e = np.sqrt(C) * eigenvalues / np.linalg.norm(eigenvalues, axis=-1, keepdims=True)
    defect2 = np.square(e - 1).sum(-1) / (2 * (C - np.sqrt(C)))
    used = np.square(C - defect2 * (C - np.sqrt(C))) / C ** 2
    return (C * used - 1) / (C - 1)


def singular_value_entropy(eigenvalues):
    """H(p) in nats, p the singular values sqrt(l) as shares of their sum."""
    return entr(_shares(np.sqrt(eigenvalues))).sum(-1)


def effective_rank(eigenvalues):
    """exp H(p), in [1, C]."""
    return np.exp(singular_value_entropy(eigenvalues))


def participation_ratio(eigenvalues):
    """(sum l)^2 / sum l^2, in [1, C]."""
    return 1 / np.square(_shares(eigenvalues)).sum(-1)


def top_share(eigenvalues, k):
    """Share of the variance in the k first principal directions."""
    return _shares(eigenvalues)[..., :k].sum(-1)


def spectrum_measures(eigenvalues):
    """name -> (...)"""
    entropy = singular_value_entropy(eigenvalues)
    return {"isoscore": isoscore(eigenvalues), "effective_rank": np.exp(entropy),
            "singular_value_entropy": entropy / np.log(eigenvalues.shape[-1]),
            "participation_ratio": participation_ratio(eigenvalues),
            **{f"top{k}_variance": top_share(eigenvalues, k) for k in TOP}}


# ----------------------------------------------------------------------------------------------------------------------
# measures of vectors

def unit(rows):
    """Rows over their length; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def pair_measures(rows, mean, scale, pairs, pair_weights):
    """Mean cosine of pairs, the same after standardisation, and the rogue share.

    rows: (n, C); mean, scale: (C,) of all tokens, held fixed in the replicates; pairs: (2, P) rows; pair_weights: (R,
    P), each row with sum 1 -> name -> (R,).
    """
    directions = unit(rows)
    standardised = unit((rows - mean) / np.where(scale > 0, scale, 1.0))
    products = directions[pairs[0]] * directions[pairs[1]]  # (P, C): what each coordinate adds to the cosine
    by_coordinate = pair_weights @ products  # (R, C)
    return {"mean_cosine": by_coordinate.sum(-1),
            "mean_cosine_standardised": pair_weights @ (standardised[pairs[0]] * standardised[pairs[1]]).sum(-1),
            "rogue_share": _shares(np.abs(by_coordinate)).max(-1)}


def partition_isotropy(rows, directions, groups, weights):
    """min Z / max Z over the directions and their opposites. rows: (n, C); directions: (C, k), columns of unit length;
    groups: (n,); weights: (R, G) -> (R,). In logarithms: the exponentials of long rows overflow. The directions stay
    fixed in the replicates."""
    projected = rows @ directions
    exponents = np.concatenate((projected, -projected), axis=1)  # (n, 2 k)
    by_group = np.stack([logsumexp(exponents[groups == g], axis=0) for g in range(weights.shape[1])])  # (G, 2 k)
    largest = by_group.max(0)
    with np.errstate(divide="ignore"):  # a replicate without the group that has the largest terms: Z = 0 to rounding
        log_z = largest + np.log(weights @ np.exp(by_group - largest))  # (R, 2 k)
    return np.exp(log_z.min(-1) - log_z.max(-1))


# ----------------------------------------------------------------------------------------------------------------------
# sums that are streamed

class Moments:
    """First and second moments of token vectors, per group of sequences. Memory: 8 G C^2 bytes."""

    def __init__(self, groups, width):
        self.count = np.zeros(groups)
        self.total = np.zeros((groups, width))
        self.outer = np.zeros((groups, width, width))

    def add(self, rows, group):
        """rows: (B, T, C) float64; group: (B,), that of each sequence."""
        for g in np.unique(group):
            chosen = rows[group == g].reshape(-1, rows.shape[-1])
            self.count[g] += len(chosen)
            self.total[g] += chosen.sum(0)
            self.outer[g] += chosen.T @ chosen

    def mean(self):
        return self.total.sum(0) / self.count.sum()

    def covariance(self, weights=None):
        """Centred, over n. weights: (G,), None: ones. -> (C, C)."""
        weights = np.ones(len(self.count)) if weights is None else weights
        count, mean = weights @ self.count, weights @ self.total / (weights @ self.count)
        return np.tensordot(weights, self.outer, 1) / count - np.outer(mean, mean)

    def eigenvalues(self, weights):
        """Of the covariance, descending. weights: (R, G) -> (R, C)."""
        values = np.stack([np.linalg.eigvalsh(self.covariance(row)) for row in weights])
        return values[:, ::-1].clip(min=0)  # rounding can leave the smallest ones below 0

    def principal_directions(self):
        """Eigenvectors of sum x x^T, not centred, in columns. (C, C)."""
        return np.linalg.eigh(self.outer.sum(0))[1]

    def coordinate_rms(self, weights):
        """Root mean square of each coordinate. (R, G) -> (R, C)."""
        squares = np.diagonal(self.outer, axis1=1, axis2=2)
        return np.sqrt(weights @ squares / (weights @ self.count)[:, None])


class TypeSums:
    """What the self-similarity of K token types needs, per group: the sum S of unit vectors, and over sequences s the
    sums of |S_s|^2, n_s and n_s^2, so that

        sum of cosines over pairs of different sequences = |S|^2 - sum_s |S_s|^2,   number of pairs = n^2 - sum_s n_s^2

    Memory: 8 G K C bytes. types: (K,) token ids.
    """

    def __init__(self, groups, width, types):
        self.types = np.asarray(types)
        K = len(self.types)
        self.total = np.zeros((groups, K, width))
        self.squares, self.count, self.count2, self.contexts = (np.zeros((groups, K)) for _ in range(4))

    def add(self, rows, tokens, group):
        """rows: (B, T, C) float64; tokens: (B, T) ids; group: (B,)."""
        member = (tokens[:, None, :] == self.types[:, None]).astype(rows.dtype)  # (B, K, T)
        sums, counts = member @ unit(rows), member.sum(-1)  # (B, K, C), (B, K)
        for into, what in ((self.total, sums), (self.squares, np.square(sums).sum(-1)), (self.count, counts),
                           (self.count2, counts ** 2), (self.contexts, counts > 0)):
            np.add.at(into, group, what)

    def self_similarity(self, weights):
        """Mean over the types with at least MIN_CONTEXTS contexts; NaN if there is none. (R, G) -> (R,)."""
        enough = self.contexts.sum(0) >= MIN_CONTEXTS
        if not enough.any():
            return np.full(len(weights), np.nan)
        total = self.total[:, enough].reshape(len(self.total), -1)
        length2 = np.stack([np.square((row @ total).reshape(enough.sum(), -1)).sum(-1) for row in weights])  # (R, K)
        # a group drawn w times has w^2 pairs of a sequence with itself or with a copy of itself: no pairs of contexts
        pairs = (weights @ self.count[:, enough]) ** 2 - weights ** 2 @ self.count2[:, enough]
        cosines = length2 - weights ** 2 @ self.squares[:, enough]
        # a replicate may lack a type: the mean is over those that it has
        has = pairs > 0
        by_type = np.where(has, cosines, 0.0) / np.where(has, pairs, 1.0)
        return by_type.sum(-1) / np.where(has.any(-1), has.sum(-1), np.nan)


def rogue_dimensions(rms):
    """Number of coordinates more than 3 standard deviations above the mean. rms: (..., C) -> (...)."""
    return (rms > rms.mean(-1, keepdims=True) + 3 * rms.std(-1, keepdims=True)).sum(-1).astype(float)


def measures(moments, types, rows, groups, pairs, pair_weights, weights):
    """All measures of one layer in one kind of coordinates. rows: (n, C) kept tokens, in `groups` (n,). -> (name ->
    (R,), the spectrum (C,): singular values as shares of their sum)."""
    eigenvalues = moments.eigenvalues(weights)
    rms = moments.coordinate_rms(weights)
    length = np.sqrt(np.square(rms).sum(-1))  # root mean square length of a vector
    directions = moments.principal_directions()
    scale = np.sqrt(np.diagonal(moments.covariance()).clip(min=0))
    out = pair_measures(rows, moments.mean(), scale, pairs, pair_weights)
    out["partition_isotropy"] = partition_isotropy(rows, directions, groups, weights)
    scaled = rows / length[0] if length[0] > 0 else rows
    out["partition_isotropy_scaled"] = partition_isotropy(scaled, directions, groups, weights)
    out.update(spectrum_measures(eigenvalues))
    out["rogue_dimensions"] = rogue_dimensions(rms)
    out["self_similarity"] = types.self_similarity(weights)
    out["self_similarity_adjusted"] = out["self_similarity"] - out["mean_cosine"]
    out["rms_length"] = length
    return out, _shares(np.sqrt(eigenvalues[0]))
