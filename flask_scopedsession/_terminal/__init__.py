"""What the commands print: tables, pages and charts."""
