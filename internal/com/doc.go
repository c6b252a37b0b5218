// Package com is the plumbing between COM and Go for one class that implements ICcgDomainAuthCredentials: the server side
// that ccg-plugin.dll exports, and the client side with which ccg.exe's part is played. It is thin: what a plugin input
// means is package plugin's, what is written to the registry is the installer's.
//
// The server side is vtables of syscall.NewCallback and objects in package-level variables, which Go never moves, so that
// COM can hold their addresses. The objects have no state, hence there is one of each.
package com
