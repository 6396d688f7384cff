"""Members of Redis's sets as the strands that they name; what names none is somebody else's doing, and skipped."""

from collections.abc import Iterable

import structlog

from app.domain.strand import Strand
from app.live import keys

log = structlog.get_logger(__name__)


def strand_or_none(member: bytes) -> Strand | None:
    try:
        return keys.strand_from(member.decode())
    except ValueError:
        return None


def strands_in(members: Iterable[bytes], *, of: str) -> list[Strand]:
    """The strands that members of the set `of` name; the others are logged."""
    strands = []
    for member in members:
        strand = strand_or_none(member)
        if strand is None:
            log.error("this is no conversation", of=of, member=repr(member)[:300])
        else:
            strands.append(strand)
    return strands
