"""The figures of both papers, drawn from what is measured here. One file a kind of figure; conf/figure names and sets them."""
