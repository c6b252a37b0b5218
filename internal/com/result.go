package com

// Result is the result of GetPasswordCredentials. The caller must wipe the password.
type Result struct {
	DomainName string
	Username   string
	Password   Password
}
