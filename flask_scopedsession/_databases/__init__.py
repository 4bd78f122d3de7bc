"""What the database servers report about connections, locks and limits."""
