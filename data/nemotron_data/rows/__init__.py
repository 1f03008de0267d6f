"""The input of a batch: files of many formats, read as rows, each a request with an id."""
