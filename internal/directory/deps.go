// Package directory is Active Directory as an impersonation account sees it.
package directory

import (
	_ "github.com/go-ldap/ldap/v3"
	_ "github.com/jcmturner/gokrb5/v8/client"
)
