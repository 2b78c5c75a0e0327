"""Is the concept gone, and what else went with it."""

from expunge.auditing.log import Log
from expunge.auditing.text import audit

__all__ = ["Log", "audit"]
