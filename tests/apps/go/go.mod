module weft.test/ends

go 1.19
