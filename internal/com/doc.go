// Package com connects COM and Go for one class that implements ICcgDomainAuthCredentials. It contains the server side,
// which ccg-plugin.dll exports, and a client side that acts like ccg.exe. Package plugin resolves the plugin input, and
// package installer registers the class.
//
// The server side consists of vtables of syscall.NewCallback and of objects in package-level variables. Go never moves
// these, so COM can hold their addresses. The objects have no state, so there is one of each.
package com
