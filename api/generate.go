// Package api holds the protocol definitions that clients see and, below it, the code
// generated from them. It owns the public wire format; it refuses to know how requests
// are served.
package api

//go:generate sh -c "cd .. && go tool -modfile=tools/go.mod buf lint && go tool -modfile=tools/go.mod buf generate"
