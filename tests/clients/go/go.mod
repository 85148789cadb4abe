module bulkhead.invalid/drive

go 1.25.0

require (
	bulkhead.invalid/client v0.0.0
	github.com/coder/websocket v1.8.15
)

require (
	github.com/apapsch/go-jsonmerge/v2 v2.0.0 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/oapi-codegen/runtime v1.8.0 // indirect
)

replace bulkhead.invalid/client => ../../../clients/go
