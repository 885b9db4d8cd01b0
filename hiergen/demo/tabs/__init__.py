"""The tabs of the demo's page, one file per tab: what it computes, and the parts of the page that show it."""
