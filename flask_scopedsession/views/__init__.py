"""What views use every day: rows or a 404, and pages.

They are methods of ``db``, which import this package when they are first called.

``_lookups``    a row, or 404 Not Found.
``_statements`` how the items of a statement are fetched.
``_pages``      pages by number.
``_keyset``     pages by bookmark.
``_bookmarks``  how bookmarks are sealed.
"""

from ._keyset import KeysetPage
from ._pages import Pagination

__all__ = ["KeysetPage", "Pagination"]
