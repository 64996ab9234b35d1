// Package compat tests the service with a client that Goa generates: results and errors decode into Goa's own types.
//
//	cd e2e/compat && go test -count=1 ./...
//
// The test generates the client from design/design.go into gen, which is not committed, and then runs the tests in
// client with it. They start the service as a process and call it. This is a module of its own so that the service's
// go.mod does not need Goa.
package compat

//go:generate go tool goa gen authsession/e2e/compat/design
