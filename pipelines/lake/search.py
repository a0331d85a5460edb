"""The compiled loops of the dedup index: finding digests in a sorted run, and merging two runs.

Digests are uniform (SipHash), so a position can be guessed from the value: interpolation search needs a handful of
reads however long the run is. The caller imports this module late: compiling takes seconds the first time, after
which numba keeps the result on disk.
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop from its arguments)

from numba import njit, uint64

_GUESSES = 4


@njit(cache=True, nogil=True)
def first_at_least(highs, value, start):
    """Return the first position >= start whose high word is >= value, in a sorted array of uint64."""
    low, high = start, len(highs)
    for _ in range(_GUESSES):
        if high - low < 64:
            break
        # The guess, and a margin around it in which a uniform array has its value almost surely.
        span = float(high - low)
        bottom, top = float(highs[low]), float(highs[high - 1])
        if float(value) <= bottom or top <= bottom:
            break
        guess = low + int(span * min((float(value) - bottom) / (top - bottom), 1.0))
        margin = int(4.0 * span**0.5) + 1
        left, right = max(low, guess - margin), min(high - 1, guess + margin)
        if highs[left] < value:
            low = left
        else:
            high = left + 1
            continue
        if highs[right] >= value:
            high = right + 1
        else:
            low = right
    while low < high:
        middle = (low + high) >> 1
        if highs[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def find(run_highs, run_lows, highs, lows, positions):
    """Set positions[i] to where (highs[i], lows[i]) stands in the run, for those not found yet (-1).

    `highs`/`lows` are sorted by (high, low). A position stays -1 when the run does not hold the digest.
    """
    at = 0
    for i in range(len(highs)):
        if positions[i] >= 0:
            continue
        at = first_at_least(run_highs, highs[i], at)
        j = at
        while j < len(run_highs) and run_highs[j] == highs[i]:
            if run_lows[j] == lows[i]:
                positions[i] = j
                break
            j += 1


@njit(cache=True, nogil=True)
def merge(a_high, a_low, a_payload, b_high, b_low, b_payload, high, low, payload):
    """Merge two runs sorted by (high, low) into the arrays `high`, `low`, `payload`; a row of `a` wins a tie."""
    i, j, n = 0, 0, 0
    while i < len(a_high) or j < len(b_high):
        take_a = j == len(b_high) or (
            i < len(a_high)
            and (a_high[i] < b_high[j] or (a_high[i] == b_high[j] and uint64(a_low[i]) <= uint64(b_low[j])))
        )
        if take_a:
            high[n], low[n], payload[n] = a_high[i], a_low[i], a_payload[i]
            i += 1
        else:
            high[n], low[n], payload[n] = b_high[j], b_low[j], b_payload[j]
            j += 1
        n += 1
    return n
