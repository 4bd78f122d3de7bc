"""The views: HTML pages and a JSON API."""
