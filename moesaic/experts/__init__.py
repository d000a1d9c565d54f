"""The experts: route, dispatch, compute, combine, and where their weights lie."""
