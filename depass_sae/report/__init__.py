"""Pages that one shows to others: feature cards and case studies. Every number on them is one of the JSON's."""
