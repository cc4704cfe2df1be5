"""The labelling page: clicks on images become masks, kept masks become a data set."""
