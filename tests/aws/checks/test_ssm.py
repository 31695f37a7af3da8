"""SSM's parameters, and the images that they name."""

from .kit import Check, client

NAME = "/kiln/server/latest"


class Parameters(Check):
    def store(self, value, name=NAME, **parameters):
        return self.ssm.put_parameter(**{"Name": name, "Value": value, "Type": "String", "DataType": "aws:ec2:image",
                                         **parameters})

    def there(self, name=NAME):
        found = self.ssm.get_parameters(Names=[name])["Parameters"]
        return found[0]["Value"] if found else None

    def test_an_image_is_there_only_after_it_was_checked(self):
        image = self.image()
        self.assertEqual(self.store(image)["Version"], 1)
        self.assertEqual([self.there() for _ in range(4)], [None, None, image, image])
        new = self.image(Name="new")
        self.refused("ParameterAlreadyExists", self.store, value=new)
        self.store(new, Overwrite=True)
        self.assertEqual([self.there() for _ in range(4)], [image, image, new, new])
        self.assertEqual(self.ssm.get_parameter(Name=f"{NAME}:1")["Parameter"]["Value"], image)
        self.assertEqual([v["Value"] for v in self.ssm.get_parameter_history(Name=NAME)["Parameters"]], [image, new])

    def test_an_image_that_is_not_there_never_comes(self):
        self.store("ami-00000000000000000")
        self.assertEqual([self.there() for _ in range(6)], [None] * 6)
        self.refused("ParameterNotFound", self.ssm.get_parameter, Name=NAME)
        far = client("ssm", "us-east-1")
        far.put_parameter(Name=NAME, Value=self.image(), Type="String", DataType="aws:ec2:image")
        for _ in range(4):
            self.refused("ParameterNotFound", far.get_parameter, Name=NAME)

    def test_rules(self):
        image = self.image()
        self.store("text", DataType="text")
        self.refused("ValidationException", self.store, value=image, Overwrite=True)
        self.refused("ValidationException", self.store, value="text", DataType="text", Overwrite=True,
                     Tags=[{"Key": "a", "Value": "b"}])
        self.refused("HierarchyTypeMismatchException", self.store, value="a,b", DataType="text", Overwrite=True,
                     Type="StringList")
        for wrong in ("/aws/x", "no/slash", "/a b", "/" + "/".join("x" * 17)):
            self.refused("ValidationException", self.store, value=image, name=wrong)
        self.refused("ValidationException", self.store, value="not-an-image", name="/other")
        self.refused("ValidationException", self.store, value=image, name="/other", DataType="wrong")

    def test_tags_paths_and_deletion(self):
        self.store("x", "/kiln/a", DataType="text", Tags=[{"Key": "k", "Value": "v"}])
        self.store("y", "/kiln/deep/b", DataType="text")
        tags = self.ssm.list_tags_for_resource(ResourceType="Parameter", ResourceId="/kiln/a")["TagList"]
        self.assertEqual(tags, [{"Key": "k", "Value": "v"}])
        by_path = lambda **p: [one["Name"] for one in self.ssm.get_parameters_by_path(  # noqa: E731
            Path="/kiln", **p)["Parameters"]]
        self.assertEqual((by_path(), by_path(Recursive=True)), (["/kiln/a"], ["/kiln/a", "/kiln/deep/b"]))
        self.ssm.delete_parameter(Name="/kiln/a")
        self.refused("ParameterNotFound", self.ssm.delete_parameter, Name="/kiln/a")
