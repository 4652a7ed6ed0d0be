"""The sums of linear attention, as pure functions.

Attention with a kernel is a quotient of two sums (arXiv:2006.16236):

    o_t = sum_i w_ti v_i / sum_i w_ti        w_ti = phi(q_t).phi(k_i) decay_ti        i <= t

The functions take values with a column of ones appended, so that one product gives both sums, and the caller divides
([`normalise`]). A column of zeros instead of ones makes a token padding: it adds nothing to either sum.

    naive_linear_sums       as written, O(S^2); for tests and for reading
    chunked_linear_sums     S^2 inside chunks, a running state between them, O(S); training and prefill
    recurrent_linear_sums   one token against the state, O(1); decode
    window_sums             softmax over the last W tokens, O(S W), in the same unnormalised form
    naive_hybrid_attention  softmax over the last W tokens and linear attention over those before, O(S^2)

The state is sum_i decay_ti phi(k_i) [v_i 1]^T.

Shapes: B batch, H heads, K key heads, G = H / K heads that share one key, S new tokens, W window, D channels of phi
(of queries and keys under softmax), Dv value channels with the column of ones, N chunks, C tokens a chunk.
"""

import torch
from torch.nn import functional as F

EPS = 1e-6  # least denominator: relu features may all be zero, and so is every weight of a padding token


def normalise(sums):
    """The output `(..., Dv - 1)` of sums `(..., Dv)`."""
    return sums[..., :-1] / sums[..., -1:].clamp_min(EPS)


def naive_linear_sums(q, k, v, log_decay=None, segment_ids=None):
    """The definition. Arguments as in [`chunked_linear_sums`]; returns the sums alone."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    visible = _visible(q, segment_ids)
    return (q @ k.mT * _decay(q, log_decay)).masked_fill(~visible, 0) @ v


def naive_hybrid_attention(
    q, k, v, q_features, k_features, window, scaling, log_window_weight, log_decay=None, segment_ids=None
):
    """Softmax over the last `window` tokens and linear attention over those before (LoLCATs, arXiv:2410.10254):

        w_ti = g exp(q_t.k_i scaling - peak_t)                         t - i < window
        w_ti = phi(q_t).phi(k_i) decay_tj    with j = i + window       t - i >= window

    peak_t is the greatest score in the window of t and belongs to the definition: the nearest token in meaning weighs
    g, whatever the size of the scores, and nothing overflows. A key ages from when it leaves the window. While all of
    a document is in the window g cancels, and this is softmax attention.

    Arguments as in [`window_sums`] and [`chunked_linear_sums`], but all of `S` tokens; `log_window_weight` `(H,)` is
    the logarithm of g. Returns the output `(B, H, S, Dv - 1)`.
    """
    k, v, k_features = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v, k_features))
    visible = _visible(q, segment_ids)
    past = torch.ones_like(visible).tril(-window)
    scores = (q @ k.mT * scaling).masked_fill(~visible | past | (v[..., -1] == 0)[:, :, None], -torch.inf)
    peak = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(q.dtype).min)
    near_weights = (scores - peak + log_window_weight[:, None, None]).exp()
    decay = F.pad(_decay(q, log_decay), (0, window))[..., window:]  # of the key's exit, `window` tokens after it
    far_weights = (q_features @ k_features.mT * decay).masked_fill(~(visible & past), 0)
    return normalise((near_weights + far_weights) @ v)


def _visible(q, segment_ids):
    """Which token may see which, `(S, S)` or `(B, 1, S, S)`."""
    causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    if segment_ids is None:
        return causal
    return causal & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])


def _decay(q, log_decay):
    """decay_ti `(B or 1, H, S, S)` where t is not before i; 1 elsewhere."""
    if log_decay is None:
        return q.new_ones(1, 1, q.shape[2], q.shape[2])
    age = log_decay.cumsum(-1).repeat_interleave(q.shape[1] // log_decay.shape[1], dim=1)
    return (age[..., :, None] - age[..., None, :]).tril().exp()


def chunked_linear_sums(q, k, v, state=None, log_decay=None, segment_ids=None, chunk_size=64):
    """Causal linear attention over `S` tokens, in chunks.

    Args:
        q: features of the queries `(B, H, S, D)`.
        k: features of the keys `(B, K, S, D)`, with K a divisor of H.
        v: values with the column of ones `(B, K, S, Dv)`.
        state: `(B, K, D, Dv)` of the tokens before, in the document of the first token, or None.
        log_decay: `(B or 1, K, S)`, the logarithm of what each token multiplies the weights of all before it with: 0
            for padding, which then ages nothing. A chunk must sum to more than -80, or fp32 overflows. Or None.
        segment_ids: `(B, S)` non-decreasing ids of packed documents, which never see each other, or None.
        chunk_size: the most tokens a chunk.

    Returns: sums `(B, H, S, Dv)` and the state after the last token (of its document).
    """
    B, K, S, D = k.shape
    H, Dv = q.shape[1], v.shape[-1]
    G, N = H // K, -(-S // chunk_size)
    C = -(-S // N)  # even chunks need little padding, often none
    pad = N * C - S
    if pad:
        q, k, v = (F.pad(x, (0, 0, 0, pad)) for x in (q, k, v))
    # Heads that share a key are rows of one product. One copy here, and none in the products below
    q = q.unflatten(1, (K, G)).unflatten(3, (N, C)).transpose(2, 3).contiguous()  # (B, K, N, G, C, D)
    k, v = (x.unflatten(2, (N, C)).contiguous() for x in (k, v))  # (B, K, N, C, ...)

    keep = None  # the share of the state that outlives each chunk, (B or 1, K or 1, N)
    k_state = k
    if log_decay is not None:
        # exp(age_t - age_i) = exp(age_t) exp(-age_i): no product of C x C is needed
        age = F.pad(log_decay, (0, pad)).unflatten(-1, (N, C)).cumsum(-1)
        keep = age[..., -1].exp()
        q = q * age.exp()[:, :, :, None, :, None]
        k = k * age.neg().exp()[..., None]
        k_state = k * keep[..., None, None]
    if segment_ids is not None:
        segment_ids = F.pad(segment_ids, (0, pad), mode="replicate" if pad else "constant").unflatten(1, (N, C))
        last_BN = segment_ids[:, :, -1]
        open_BN = torch.cat([segment_ids[:, 0, :1], last_BN[:, :-1]], dim=1)  # the document that a chunk finds open
        same = (segment_ids[:, :, :, None] == segment_ids[:, :, None, :])[:, None, :, None]
        goes_on = (segment_ids == open_BN[:, :, None])[:, None, :, None, :, None]
        k_state = k_state * (segment_ids == last_BN[:, :, None])[:, None, :, :, None]
        stays_open = (last_BN == open_BN)[:, None].to(q.dtype)
        keep = stays_open if keep is None else keep * stays_open

    sums = torch.bmm(k_state.flatten(0, 2).mT, v.flatten(0, 2)).view(B, K, N, D, Dv)
    before = []
    state = torch.zeros_like(sums[:, :, 0]) if state is None else state
    for n in range(N):
        before.append(state)
        old = state if keep is None else state * keep[:, :, n, None, None]
        state = old + sums[:, :, n]
    before = torch.stack(before, dim=2)

    across = torch.bmm(q.flatten(0, 2).flatten(1, 2), before.flatten(0, 2))
    within = torch.bmm(q.flatten(0, 2).flatten(1, 2), k.flatten(0, 2).mT).view(B, K, N, G, C, C).tril_()
    if segment_ids is not None:
        within = within * same
        across = (across.view(B, K, N, G, C, Dv) * goes_on).view(-1, G * C, Dv)
    out = torch.baddbmm(across, within.view(-1, G * C, C), v.flatten(0, 2))
    return out.view(B, K, N, G, C, Dv).transpose(2, 3).reshape(B, H, N * C, Dv)[:, :, :S], state


def recurrent_linear_sums(q, k, v, state, log_decay=None):
    """One token (`S` = 1) against the state. Arguments and results as in [`chunked_linear_sums`]."""
    if log_decay is not None:
        state = state * log_decay.exp()[..., None]
    state = torch.addcmul(state, k.mT, v)
    q_BKGD = q.squeeze(2).unflatten(1, (k.shape[1], -1))
    return (q_BKGD @ state).flatten(1, 2).unsqueeze(2), state


def linear_sums(q, k, v, state=None, log_decay=None, segment_ids=None):
    """The fast form for what is asked. Arguments and results as in [`chunked_linear_sums`]."""
    if state is not None and q.shape[2] == 1:
        return recurrent_linear_sums(q, k, v, state, log_decay)
    return chunked_linear_sums(q, k, v, state, log_decay, segment_ids)


def window_sums(q, k, v, scaling, segment_ids=None):
    """Softmax attention over the last W tokens, before its division: sum_i exp(q_t.k_i scaling - peak_t) [v_i 1], with
    peak_t the greatest score of t.

    Args:
        q: queries `(B, H, S, D)`.
        k: keys `(B, K, W + S, D)`: those of the W tokens before, then the new ones.
        v: their values `(B, K, W + S, Dv)`, whose last column is 1, or 0 for padding and where nothing was before.
        scaling: factor on the scores.
        segment_ids: `(B, W + S)` ids of packed documents, which never see each other, or None.

    Returns: sums `(B, H, S, Dv)`; zero for a query that sees nothing.
    """
    B, H, S, D = q.shape
    K, W = k.shape[1], k.shape[2] - S
    G, N = H // K, -(-S // W)
    C = -(-S // N)
    pad = N * C - S
    if pad:
        q, k, v = (F.pad(x, (0, 0, 0, pad)) for x in (q, k, v))
    q = q.unflatten(1, (K, G)).unflatten(3, (N, C)).transpose(2, 3).reshape(-1, G * C, D)
    k, v = (x.unfold(2, W + C, C) for x in (k, v))  # (B, K, N, ..., W + C): what each chunk may see

    ago = torch.arange(C, device=q.device)[:, None] + W - torch.arange(W + C, device=q.device)
    seen = ((ago >= 0) & (ago < W)) & (v[..., -1:, :] > 0)  # (B, K, N, C, W + C)
    if segment_ids is not None:
        segment_ids = F.pad(segment_ids, (0, pad), value=-1).unfold(1, W + C, C)
        seen = seen & (segment_ids[:, :, W:, None] == segment_ids[:, :, None, :])[:, None]

    scores = torch.bmm(q, k.reshape(-1, D, W + C)).view(B, K, N, G, C, W + C) * scaling
    scores = scores.masked_fill(~seen[:, :, :, None], -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)).exp()
    out = torch.bmm(weights.view(-1, G * C, W + C), v.reshape(-1, v.shape[3], W + C).mT)
    return out.view(B, K, N, G, C, -1).transpose(2, 3).reshape(B, H, N * C, -1)[:, :, :S]
